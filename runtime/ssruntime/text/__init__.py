"""Between text and tokens: tokenizer, incremental detokenization, stop strings and chat templates."""
