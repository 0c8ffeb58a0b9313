// SPDX-License-Identifier: Apache-2.0
//! Why the catalog refused something. The Consul door turns each into a status and this text.

use thiserror::Error;
use weft_store::StoreError;

#[derive(Debug, Error)]
pub enum CatalogError {
    #[error(
        "Unknown service ID {id:?}. Ensure that the service ID is passed, not the service name."
    )]
    UnknownService { id: String },
    #[error("Unknown check ID {id:?}. Ensure that the check ID is passed, not the check name.")]
    UnknownCheck { id: String },
    #[error("ServiceID {id:?} does not exist")]
    NoSuchService { id: String },
    #[error("CheckID {id:?} does not have associated TTL")]
    NotTtl { id: String },
    #[error(
        "service {service:?} in namespace {namespace:?} is owned by the {owner} door and is \
         read-only here; change it there, or register under another name"
    )]
    Owned { namespace: String, service: String, owner: String },
    #[error("{what} has {found}, but at most {max} are allowed; leave some out")]
    TooMuch { what: String, found: usize, max: usize },
    #[error("{0}")]
    Invalid(String),
    #[error("the catalog entry kept changing under this request; send it again")]
    Contended,
    #[error("what this request was judged by has changed since; send it again")]
    Overtaken,
    #[error("the store refused the write: {0}")]
    Store(#[from] StoreError),
    #[error("a catalog record could not be written as JSON")]
    Encode(#[from] serde_json::Error),
    #[error("the registry is shutting down; send the request again to a running server")]
    Closed,
}

// === impl CatalogError ===

impl CatalogError {
    /// Whether the same request may be taken a moment later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Store(why) => why.is_passing(),
            Self::Contended | Self::Overtaken | Self::Closed => true,
            _ => false,
        }
    }

    /// Whether the store cannot be asked now, so that nobody here can say what is true.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Store(StoreError::Unreachable { .. } | StoreError::Closed))
    }

    /// What its client asked for that no store would keep, in the client's words.
    pub fn too_much(&self) -> Option<String> {
        match self {
            Self::Store(why) => too_much(why),
            _ => None,
        }
    }
}

/// The same of a store's refusal, which names keys that nobody outside knows.
pub(crate) fn too_much(why: &StoreError) -> Option<String> {
    Some(match why {
        StoreError::KeyTooLong { len, max, .. } => format!(
            "the name is {} bytes too long: with its namespace, and its node, it may have some \
             {max} bytes in all",
            len.saturating_sub(*max)
        ),
        StoreError::EmptyKey => "a name is empty; name what is to be written".to_owned(),
        StoreError::ValueTooLarge { len, max, .. } => {
            format!("what is to be kept is {len} bytes long, over the limit of {max}")
        }
        StoreError::DuplicateKey { .. } => {
            "the request writes one thing twice; write each once".to_owned()
        }
        StoreError::TooManyOps { ops, max } | StoreError::TooManyKeys { keys: ops, max, .. } => {
            format!("the request makes {ops} changes at once, over the limit of {max}; split it")
        }
        _ => return None,
    })
}
