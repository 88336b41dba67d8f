//! What the contract is tried with: blobs, images and the steps that bring them over.

use blobferry::endpoint::{
    Begin, BlobBody, Destination, Offset, Presence, Put, Sent, Upload, UploadStyle,
};
use blobferry::fault::Fault;
use blobferry::oci::media_type::{OCI_INDEX, OCI_MANIFEST};
use blobferry::oci::{Algorithm, Descriptor, Digest, Manifest, MediaType, Tag, Target};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use serde_json::{Value, json};

pub fn tag(name: &str) -> Tag {
    name.parse().unwrap()
}

/// Bytes that do not repeat, the same for the same words.
pub fn content(words: &str, length: usize) -> Bytes {
    let mut state = words
        .bytes()
        .fold(0x9e37_79b9_7f4a_7c15_u64, |state, byte| {
            (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

pub fn layer(digest: Digest, size: u64) -> Descriptor {
    Descriptor::new(
        MediaType::new("application/vnd.oci.image.layer.v1.tar+gzip"),
        digest,
        size,
    )
}

pub async fn begin<D: Destination>(repository: &D, digest: &Digest) -> Upload {
    match repository.begin_upload(digest, None).await.unwrap() {
        Begin::Session(session) => session,
        Begin::Mounted => panic!("mounted without a source"),
    }
}

pub async fn finish<D: Destination>(
    repository: &D,
    session: &mut Upload,
    digest: &Digest,
    offset: u64,
    rest: &Bytes,
) {
    let body = BlobBody::full(rest.clone());
    let sent = repository
        .finish_upload(session, digest, offset, rest.len() as u64, body)
        .await
        .unwrap();
    assert!(matches!(sent, Sent::Accepted { .. }), "{sent:?}");
}

pub async fn upload<D: Destination>(repository: &D, bytes: &Bytes) -> Descriptor {
    let digest = Digest::sha256(bytes);
    let mut session = begin(repository, &digest).await;
    finish(repository, &mut session, &digest, 0, bytes).await;
    layer(digest, bytes.len() as u64)
}

pub async fn put<D: Destination>(repository: &D, target: impl Into<Target>, manifest: &Manifest) {
    let put = repository
        .put_manifest(&target.into(), manifest)
        .await
        .unwrap();
    assert!(matches!(put, Put::Accepted { .. }), "{put:?}");
}

pub async fn document<D: Destination>(repository: &D, blob: &Descriptor, note: &str) -> Value {
    let config =
        Bytes::from(json!({"architecture": "amd64", "os": "linux", "note": note}).to_string());
    let uploaded = upload(repository, &config).await;
    json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": uploaded.digest, "size": uploaded.size},
        "layers": [blob],
        "annotations": {"note": note},
    })
}

pub fn parse(document: &Value) -> Manifest {
    Manifest::parse(document.to_string().into(), None, Algorithm::Sha256).unwrap()
}

/// An image of one layer, with its config uploaded.
pub async fn image<D: Destination>(repository: &D, blob: &Descriptor, note: &str) -> Manifest {
    parse(&document(repository, blob, note).await)
}

pub fn index_of(children: &[&Manifest]) -> Manifest {
    let children: Vec<Descriptor> = children.iter().map(|child| child.descriptor()).collect();
    parse(&json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children}))
}

pub async fn collect(mut body: BlobBody) -> Result<Bytes, Fault> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        bytes.extend_from_slice(&frame?);
    }
    Ok(bytes.into())
}

pub async fn read<D: Destination>(repository: &D, blob: &Descriptor) -> Option<Bytes> {
    let body = repository.read_blob(blob, 0).await.unwrap()?;
    Some(collect(body).await.unwrap())
}

pub async fn is_present<D: Destination>(repository: &D, blob: &Descriptor) -> bool {
    match repository.has_blob(&blob.digest).await.unwrap() {
        Presence::Present { size } => size.is_none_or(|size| size == blob.size),
        Presence::Absent => false,
    }
}

pub async fn assert_absent<D: Destination>(repository: &D, blob: &Descriptor) {
    assert_eq!(
        repository.has_blob(&blob.digest).await.unwrap(),
        Presence::Absent
    );
    assert!(repository.read_blob(blob, 0).await.unwrap().is_none());
}

pub fn assert_missing(put: &Put, digest: &Digest) {
    match put {
        Put::Missing(missing) => assert!(
            missing.is_empty() || missing.contains(digest),
            "{missing:?}"
        ),
        other => panic!("{digest} is missing, and yet: {other:?}"),
    }
}

pub async fn true_offset<D: Destination>(repository: &D, session: &mut Upload) -> u64 {
    match repository.upload_offset(session).await.unwrap() {
        Offset::At(at) => at,
        other => panic!("the status tells the offset, not {other:?}"),
    }
}

/// Bytes of a chunk.
pub const CHUNK: usize = 1000;

pub fn last_travels_in_put<D: Destination>(repository: &D) -> bool {
    match repository.abilities().upload {
        UploadStyle::Whole => true,
        UploadStyle::Stream => false,
    }
}

/// A body that promises more than it brings, and then fails.
pub struct Cut {
    pub part: Option<Bytes>,
    pub promised: u64,
}

impl http_body::Body for Cut {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let frame = match self.part.take() {
            Some(part) => {
                self.promised -= part.len() as u64;
                Ok(Frame::data(part))
            }
            None => Err(Fault::retryable("the source broke")),
        };
        std::task::Poll::Ready(Some(frame))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.promised)
    }
}
