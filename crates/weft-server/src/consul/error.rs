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
    /// For 301: where it is.
    pub to: Option<String>,
    /// Instead of the text: the errors of a transaction.
    pub body: Option<Box<serde_json::Value>>,
    /// Nothing was written, since what admitted the request has changed: judge it again.
    pub again: bool,
}

// === impl Refusal ===

impl Refusal {
    pub fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), allow: None, to: None, body: None, again: false }
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

    /// Where it is elsewhere, the question goes there, too.
    #[must_use]
    pub fn asking(mut self, query: Option<&str>) -> Self {
        if let (Some(to), Some(query)) = (&mut self.to, query) {
            to.push('?');
            to.push_str(query);
        }
        self
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
        if let (CatalogError::Store(why), true) = (&error, error.is_unreachable()) {
            return no_leader(&why.to_string());
        }
        if let Some(why) = error.too_much() {
            return Self::bad(why);
        }
        let status = match &error {
            CatalogError::UnknownService { .. }
            | CatalogError::UnknownCheck { .. }
            | CatalogError::NoSuchService { .. } => StatusCode::NOT_FOUND,
            CatalogError::Owned { .. } => StatusCode::CONFLICT,
            CatalogError::TooMuch { .. } | CatalogError::Invalid(_) => StatusCode::BAD_REQUEST,
            CatalogError::Contended | CatalogError::Overtaken => StatusCode::SERVICE_UNAVAILABLE,
            CatalogError::NotTtl { .. } | CatalogError::Encode(_) | CatalogError::Closed => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            CatalogError::Store(why) => unwritten(why.is_full()),
        };
        let again = matches!(error, CatalogError::Overtaken);
        Self { again, ..Self::new(status, error.to_string()) }
    }
}

impl From<ConsulError> for Refusal {
    fn from(error: ConsulError) -> Self {
        if let (ConsulError::Store(why), true) = (&error, error.is_unreachable()) {
            return no_leader(&why.to_string());
        }
        if let Some(why) = error.too_much() {
            return Self::bad(why);
        }
        let status = match error {
            ConsulError::Catalog(error) => return error.into(),
            ConsulError::Store(ref why) => unwritten(why.is_full()),
            ConsulError::UnknownSession { .. } => StatusCode::NOT_FOUND,
            ConsulError::TooMuch { .. } => StatusCode::BAD_REQUEST,
            ConsulError::Refused(_) => StatusCode::CONFLICT,
            ConsulError::Contended => StatusCode::SERVICE_UNAVAILABLE,
            ConsulError::Closed
            | ConsulError::InvalidSession { .. }
            | ConsulError::Invalid(_)
            | ConsulError::Encode(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

/// A store that cannot be asked. Consul's clients ask again only where a server says 500, as one
/// does that knows no leader: who holds a lock would lose it at any other status.
fn no_leader(why: &str) -> Refusal {
    Refusal::internal(format!("No cluster leader: {why}"))
}

fn unwritten(full: bool) -> StatusCode {
    match full {
        true => StatusCode::INSUFFICIENT_STORAGE,
        false => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use weft_store::StoreError;

    use super::*;

    #[test]
    fn a_store_out_of_reach_is_a_500_as_clients_ask_again_only_then() {
        let away = || StoreError::Unreachable {
            member: "m0".into(),
            why: "refused".into(),
            unknown: false,
        };
        for refusal in
            [Refusal::from(ConsulError::Store(away())), CatalogError::Store(away()).into()]
        {
            assert_eq!(refusal.status, 500);
            let said = "No cluster leader: m0 cannot be reached (refused)";
            assert!(refusal.text.starts_with(said), "{}", refusal.text);
        }
        let full = std::io::Error::from_raw_os_error(28);
        let full = StoreError::Storage(std::sync::Arc::new(full));
        assert_eq!(Refusal::from(CatalogError::Store(full)).status, 507);
        assert_eq!(Refusal::from(ConsulError::Closed).status, 500);
        assert_eq!(Refusal::from(ConsulError::Contended).status, 503);
    }

    #[test]
    fn what_no_store_would_keep_is_a_400_without_the_stores_words() {
        let key = "/k/v/default/secret".to_owned();
        let long = StoreError::KeyTooLong { key, len: 1030, max: 1024 };
        for refusal in
            [Refusal::from(ConsulError::Store(long.clone())), CatalogError::Store(long).into()]
        {
            assert_eq!(refusal.status, 400);
            assert!(refusal.text.starts_with("the name is 6 bytes too long"), "{}", refusal.text);
            assert!(!refusal.text.contains("/k/v/"), "{}", refusal.text);
        }
    }
}
