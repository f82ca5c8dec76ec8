"""Between texts and tokens: the tokenizer, incremental text, stop strings and chat templates."""
