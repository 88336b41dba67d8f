//! Carries an image and names it.
