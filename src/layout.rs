//! OCI image-layout directories.
