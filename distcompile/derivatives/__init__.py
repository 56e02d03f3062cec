"""Second derivatives of an energy: a function of the model is compiled that multiplies a vector with them."""
