"""Tests of component code; a package, as some files have the names of tests of other parts."""
