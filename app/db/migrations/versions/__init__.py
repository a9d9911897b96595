"""One file a revision, in order. A revision never imports ``app.db.schema``: it must stay as it was when it was released."""
