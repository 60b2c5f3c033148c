"""What of the documentation is made from the code: `scripts/docs write` writes these pages."""
