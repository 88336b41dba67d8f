//! What happened and what people decided, in SQLite.
