"""Where samples come from: sets made here, pictures of any kind brought to pixels, and the stream into a trainer."""
