"""Files of models and adapters: found, checked before anything reads them, known afterwards."""
