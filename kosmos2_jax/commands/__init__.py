"""Commands of `kosmos2`, each in a file with its options. Nothing heavy is imported at the top."""
