//! The control plane of Amazon ECR.
