//! Any place that holds images.
