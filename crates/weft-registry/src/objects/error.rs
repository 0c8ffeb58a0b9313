// SPDX-License-Identifier: Apache-2.0
//! Why an object was not read or written, in Kubernetes' words. The door turns each into a
//! Status; [`ObjectError::code`] and [`ObjectError::reason`] say which.

use weft_base::issue::Issues;
use weft_kinds::kind::KindId;
use weft_store::StoreError;

#[derive(Clone, Debug, thiserror::Error)]
pub enum ObjectError {
    #[error("{} {name:?} not found", kind.row().resource())]
    NotFound { kind: KindId, name: String },
    #[error("{} {name:?} already exists", kind.row().resource())]
    AlreadyExists { kind: KindId, name: String },
    #[error("Operation cannot be fulfilled on {} {name:?}: {why}", kind.row().resource())]
    Conflict { kind: KindId, name: String, why: String },
    #[error(
        "Operation cannot be fulfilled on {} {name:?}: it is owned by the {owner} door and is \
         read-only here; change it there", kind.row().resource()
    )]
    Owned { kind: KindId, name: String, owner: String },
    #[error("{kind} {name:?} is invalid: {issues}")]
    Invalid { kind: KindId, name: String, issues: Issues },
    #[error("{} {name:?} is forbidden: {why}", kind.row().resource())]
    Forbidden { kind: KindId, name: String, why: String },
    #[error("{0}")]
    BadRequest(String),
    #[error("{kind} {name:?} is {bytes} bytes long, over the limit of {max}; make it smaller")]
    TooLarge { kind: KindId, name: String, bytes: usize, max: usize },
    #[error("too old resource version: {from} ({oldest})")]
    Expired { from: u64, oldest: u64 },
    #[error("too many requests: {0}")]
    Busy(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

// === impl ObjectError ===

impl ObjectError {
    /// The HTTP status that says it.
    pub fn code(&self) -> u16 {
        match self {
            Self::NotFound { .. } => 404,
            Self::AlreadyExists { .. } | Self::Conflict { .. } | Self::Owned { .. } => 409,
            Self::Invalid { .. } => 422,
            Self::Forbidden { .. } => 403,
            Self::BadRequest(_) => 400,
            Self::TooLarge { .. } => 413,
            Self::Expired { .. } => 410,
            Self::Busy(_) => 429,
            Self::Store(e) if e.is_full() => 507,
            // It may work again when the disk or the other servers do.
            Self::Store(e) if e.is_passing() => 503,
            Self::Store(_) => 500,
        }
    }

    /// Kubernetes' word for it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "NotFound",
            Self::AlreadyExists { .. } => "AlreadyExists",
            Self::Conflict { .. } | Self::Owned { .. } => "Conflict",
            Self::Invalid { .. } => "Invalid",
            Self::Forbidden { .. } => "Forbidden",
            Self::BadRequest(_) => "BadRequest",
            Self::TooLarge { .. } => "RequestEntityTooLarge",
            Self::Expired { .. } => "Expired",
            Self::Busy(_) => "TooManyRequests",
            Self::Store(e) if e.is_passing() => "ServiceUnavailable",
            Self::Store(_) => "InternalError",
        }
    }

    pub(crate) fn stale(kind: KindId, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest \
                   version and try again";
        Self::Conflict { kind, name: name.to_owned(), why: why.to_owned() }
    }
}
