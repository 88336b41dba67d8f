//! The config file as typed settings.
