"""`sstool`: from a Hugging Face decoder checkpoint to a self-speculative artifact, and what measures one."""
