"""Tasks made to order: seeded, for any tokenizer that has the words, with twins and spans."""
