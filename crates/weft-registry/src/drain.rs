// SPDX-License-Identifier: Apache-2.0
//! Taking an instance out of the mesh by hand while it goes on running: it finishes what it has and
//! is picked no more. Pods carry an annotation, which their EndpointSlices turn into what
//! Kubernetes says of pods that go; registrations get Consul's maintenance. Called by the server's
//! door for operators.

use weft_kinds::kind::KindId;
use weft_kinds::world::{DRAIN_ANNOTATION, RegistrationKey};

use crate::catalog::CatalogError;
use crate::objects::{admit, meta};
use crate::{Change, ObjectError, Part, Registry, WriteOptions};

/// One instance, whichever door made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Drainable {
    Pod { namespace: String, name: String },
    Registration(RegistrationKey),
}

/// Why an instance could not be drained.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

// === impl Registry ===

impl Registry {
    /// Drains an instance, or with `reason` absent takes that back. Returns the revision that says
    /// so; an instance that is as it should be stays.
    ///
    /// # Errors
    /// When it is gone, or the store cannot be written.
    pub async fn drain(&self, what: &Drainable, reason: Option<&str>) -> Result<u64, DrainError> {
        match what {
            Drainable::Registration(key) => {
                let (catalog, why) = (self.catalog(), reason.unwrap_or_default());
                catalog.service_maintenance(key, reason.is_some(), why).await?;
                Ok(catalog.revision())
            }
            Drainable::Pod { namespace, name } => {
                let (kind, options) = (KindId::Pod, WriteOptions::SYSTEM);
                let change = Change { kind, namespace, name, part: Part::All, options };
                let objects = self.objects();
                let written = objects.modify(change, |old| {
                    let mut new = old.clone();
                    match reason {
                        Some(why) => admit::annotate(&mut new, DRAIN_ANNOTATION, why.to_owned()),
                        None => {
                            let notes = meta::metadata_mut(&mut new).get_mut("annotations");
                            if let Some(notes) = notes.and_then(|n| n.as_object_mut()) {
                                notes.remove(DRAIN_ANNOTATION);
                            }
                        }
                    }
                    Ok(new)
                });
                let written = written.await?;
                let revision = written["metadata"]["resourceVersion"].as_str().unwrap_or_default();
                Ok(revision.parse().unwrap_or_default())
            }
        }
    }
}
