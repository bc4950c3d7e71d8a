"""Words and identity tokens to the key text and the value text of every stage."""
