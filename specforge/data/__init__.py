"""From a raw chat file to token ids: records, sources, the split, chat templates, the cache."""
