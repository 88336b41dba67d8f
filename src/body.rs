//! Bodies of HTTP answers, read up to a bound.

use reqwest::Response;

/// Reads a body of at most `most` bytes. `None`: it is longer.
///
/// # Errors
/// When the answer breaks off.
pub async fn read(answer: &mut Response, most: usize) -> reqwest::Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if body.len() + chunk.len() > most {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}
