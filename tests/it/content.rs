//! Rules of content: what a route asks of a repository, a tag or an image beside gates. Through the
//! program and real registries.

mod at_least;
