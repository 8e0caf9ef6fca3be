"""Reading and writing files; nothing in a file is ever executed. Start with `checkpoint`."""
