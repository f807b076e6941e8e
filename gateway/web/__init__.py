"""HTTP surfaces. They carry; they do not decide."""
