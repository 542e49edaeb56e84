"""Should You Mask 15% in Masked Language Modeling? (EACL 2023), reproduced."""
