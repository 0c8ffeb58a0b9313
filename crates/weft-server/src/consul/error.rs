// SPDX-License-Identifier: Apache-2.0
//! What a Consul client is told when a request is refused: a status and one line of text.

use http::StatusCode;
use weft_registry::catalog::CatalogError;
use weft_registry::consul::ConsulError;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: StatusCode,
    pub text: String,
    /// For 405: the methods that would do.
    pub allow: Option<String>,
    /// Instead of the text: the errors of a transaction.
    pub body: Option<Box<serde_json::Value>>,
    /// Nothing was written, since what admitted the request has changed: judge it again.
    pub again: bool,
}

// === impl Refusal ===

impl Refusal {
    pub fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), allow: None, body: None, again: false }
    }

    pub fn bad(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    pub fn not_found(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, text)
    }

    pub fn forbidden(text: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, text)
    }

    pub fn not_offered(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, text)
    }

    pub fn overtaken() -> Self {
        CatalogError::Overtaken.into()
    }

    pub fn internal(text: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    }
}

impl From<CatalogError> for Refusal {
    fn from(error: CatalogError) -> Self {
        let status = match &error {
            CatalogError::UnknownService { .. }
            | CatalogError::UnknownCheck { .. }
            | CatalogError::NoSuchService { .. } => StatusCode::NOT_FOUND,
            CatalogError::Owned { .. } => StatusCode::CONFLICT,
            CatalogError::TooMuch { .. } | CatalogError::Invalid(_) => StatusCode::BAD_REQUEST,
            CatalogError::Contended | CatalogError::Overtaken | CatalogError::Closed => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            CatalogError::Store(why) => unwritten(why.is_full(), why.is_passing()),
            CatalogError::NotTtl { .. } | CatalogError::Encode(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        let again = matches!(error, CatalogError::Overtaken);
        Self { again, ..Self::new(status, error.to_string()) }
    }
}

impl From<ConsulError> for Refusal {
    fn from(error: ConsulError) -> Self {
        let status = match error {
            ConsulError::Catalog(error) => return error.into(),
            ConsulError::UnknownSession { .. } => StatusCode::NOT_FOUND,
            ConsulError::TooMuch { .. } => StatusCode::BAD_REQUEST,
            ConsulError::Refused(_) => StatusCode::CONFLICT,
            ConsulError::Contended | ConsulError::Closed => StatusCode::SERVICE_UNAVAILABLE,
            ConsulError::Store(ref why) => unwritten(why.is_full(), why.is_passing()),
            ConsulError::InvalidSession { .. }
            | ConsulError::Invalid(_)
            | ConsulError::Encode(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

/// A store that cannot write now is not this server's fault for good.
fn unwritten(full: bool, passing: bool) -> StatusCode {
    match (full, passing) {
        (true, _) => StatusCode::INSUFFICIENT_STORAGE,
        (false, true) => StatusCode::SERVICE_UNAVAILABLE,
        (false, false) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
