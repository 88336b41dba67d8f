//! Hints and open uploads in SQLite.
