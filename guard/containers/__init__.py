"""How bytes hold rows: one reader for every container, whatever is compressed around it, in bounded memory."""
