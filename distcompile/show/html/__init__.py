"""What the compiler did, as one page for a browser: plain records, figures of them, and the page around these."""
