// SPDX-License-Identifier: Apache-2.0
//! Why something of Consul's own was refused. The Consul door turns each into a status.

use thiserror::Error;
use weft_store::StoreError;

use crate::catalog::CatalogError;

#[derive(Debug, Error)]
pub enum ConsulError {
    #[error("invalid session {id:?}")]
    InvalidSession { id: String },
    #[error("Session id '{id}' not found")]
    UnknownSession { id: String },
    #[error("{0}")]
    Invalid(String),
    #[error("{what} has {found}, but at most {max} are allowed; leave some out")]
    TooMuch { what: &'static str, found: usize, max: usize },
    /// Operations of a transaction that cannot be done: which, and why.
    #[error("{} operations of the transaction cannot be done", .0.len())]
    Refused(Vec<(usize, String)>),
    #[error("what is to be written kept changing under this request; send it again")]
    Contended,
    #[error("the store refused the write: {0}")]
    Store(#[from] StoreError),
    #[error("a record could not be written as JSON")]
    Encode(#[from] serde_json::Error),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("the registry is shutting down; send the request again to a running server")]
    Closed,
}

// === impl ConsulError ===

impl ConsulError {
    /// Whether the store cannot be asked now, so that nobody here can say what is true.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Store(why) => matches!(why, StoreError::Unreachable { .. } | StoreError::Closed),
            Self::Catalog(error) => error.is_unreachable(),
            _ => false,
        }
    }

    /// What its client asked for that no store would keep, in the client's words.
    pub fn too_much(&self) -> Option<String> {
        match self {
            Self::Store(why) => crate::catalog::too_much(why),
            Self::Catalog(error) => error.too_much(),
            _ => None,
        }
    }
}
