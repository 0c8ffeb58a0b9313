// SPDX-License-Identifier: Apache-2.0
//! The path that a rule's rewrite makes, held to what a client's own path must be: `/api` off
//! `/api../x` would leave `/../x`. Called by the phases and by `weft explain`; pure.

use weft_model::decide::rewritten_path;
use weft_model::{Filter, Match, PathRewrite};

use super::normalise::check_path;

/// Longest path that an expression looks through: its time may grow with the square of that.
pub const PATH_BYTES_MAX: usize = 8 * 1024;

/// Why a request is refused for the path that it would have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    pub status: u16,
    pub why: String,
}

/// # Errors
/// Nobody can send that path on.
pub fn rewritten(
    path: &str,
    rewrite: &PathRewrite,
    matched: Option<&Match>,
) -> Result<String, Unfit> {
    if matches!(rewrite, PathRewrite::Regex(_)) && path.len() > PATH_BYTES_MAX {
        let why = format!(
            "its path has {} bytes, at most {PATH_BYTES_MAX} are rewritten by an expression",
            path.len()
        );
        return Err(Unfit { status: 414, why });
    }
    let new = rewritten_path(path, rewrite, matched);
    match check_path(&new, false) {
        Ok(()) => Ok(new),
        Err(why) => Err(Unfit { status: 400, why: format!("rewritten to {new:?}: {why}") }),
    }
}

/// The same for the last one of filters that rewrites, as a request would have it.
pub fn unfit<'f>(
    path: &str,
    filters: impl Iterator<Item = &'f Filter>,
    matched: Option<&Match>,
) -> Option<Unfit> {
    let rewrites = filters.filter_map(|filter| match filter {
        Filter::Rewrite(rewrite) => Some(rewrite),
        _ => None,
    });
    rewritten(path, rewrites.last()?.path.as_ref()?, matched).err()
}

#[cfg(test)]
mod tests {
    use weft_model::{PathMatch, RegexRewrite};

    use super::*;

    fn by(path: PathMatch) -> Match {
        Match { path: Some(path), ..Match::default() }
    }

    #[test]
    fn no_rewrite_makes_a_path_that_a_client_may_not_send() {
        let to = |p: &str| PathRewrite::Prefix(p.into());
        let text = |p: &str| by(PathMatch::StringPrefix(p.into()));
        let expression = |find, with| PathRewrite::Regex(RegexRewrite::new(find, with).unwrap());
        let elements = by(PathMatch::ElementPrefix("/api".into()));
        for (path, rewrite, matched, new) in [
            ("/api/admin", to("/v1"), text("/api"), "/v1/admin"),
            ("/api..x", to("/"), text("/api"), "/..x"),
            ("/api/x", to("/"), elements.clone(), "/x"),
            ("/v1/x", expression("^/v1", ""), elements.clone(), "/x"),
        ] {
            assert_eq!(rewritten(path, &rewrite, Some(&matched)).as_deref(), Ok(new), "{path}");
        }
        for (path, rewrite, matched) in [
            ("/api../admin", to("/"), text("/api")),
            ("/api.;x/admin", to("/"), text("/api")),
            ("/api%2e%2e/admin", to("/"), text("/api")),
            ("/a/.-./b", expression("-", ""), elements.clone()),
            ("/a/x", expression("^/a/", ""), elements),
        ] {
            let unfit = rewritten(path, &rewrite, Some(&matched)).unwrap_err();
            assert_eq!(unfit.status, 400, "{path}: {unfit:?}");
        }
    }

    #[test]
    fn an_expression_looks_through_short_paths_only() {
        // Every piece is looked for to the end of the path, and is one character.
        let worst = PathRewrite::Regex(RegexRewrite::new(".*[^A-Z]|[A-Z]", "a").unwrap());
        let path = |n| format!("/{}", "A".repeat(n - 1));
        assert!(rewritten(&path(PATH_BYTES_MAX + 1), &worst, None).is_err_and(|u| u.status == 414));
        let all = PathRewrite::Full("/all".into());
        assert_eq!(rewritten(&path(60_000), &all, None).as_deref(), Ok("/all"));
    }
}
