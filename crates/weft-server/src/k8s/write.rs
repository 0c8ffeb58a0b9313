// SPDX-License-Identifier: Apache-2.0
//! Create, update, patch and apply. Every write goes the same way: decode, check the names,
//! drop unknown fields (or refuse them), default, validate, note the field's managers, store.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, StatusCode};
use serde_json::{Map, Value};
use weft_base::issue::Issues;
use weft_base::limits::STORE_VALUE_BYTES_MAX;
use weft_kinds::apply::{self, Writer};
use weft_kinds::decode::{Document, Format, format_of};
use weft_kinds::kind::{Family, Kind, KindId};
use weft_kinds::schema::{self, Schema};
use weft_kinds::{builtin, check, codes, patch};
use weft_registry::objects::Change;
use weft_registry::{ObjectError, Part, WriteOptions};

use super::path::Objects;
use super::present::{Shape, in_version};
use super::query::Validation;
use super::status::{ApiError, json_response};
use super::{Ask, Door, body};
use crate::json::Fields;

/// Warnings told of one request.
const WARNINGS_MAX: usize = 16;

/// One write on its way: what it is about and how strict it is.
pub(super) struct Work {
    kind: KindId,
    version: &'static str,
    /// Group and version, as `apiVersion` says them.
    api_version: String,
    namespace: String,
    name: String,
    part: Part,
    schema: std::sync::Arc<Schema>,
    validation: Validation,
    dry_run: bool,
    manager: String,
    time: String,
}

/// What a patch request says to do.
enum Patch {
    Strategic(Value),
    Merge(Value),
    Operations(Value),
    Apply { object: Value, force: bool },
}

type Refused = Result<Response, ApiError>;

// === writing ===

impl Door {
    pub(super) async fn create(&self, target: Objects, ask: &Ask, body: Body) -> Refused {
        let shape = Shape::of(&ask.parts.headers, &ask.query)?;
        let mut work = self.work(&target, ask)?;
        let bytes = body::read(body).await?;
        let document = body::document(ask.content_type(), &bytes)?;
        let mut object = document.value;
        work.settle_names(&mut object)?;
        let mut warnings = work.strict(&mut object, &document.duplicates)?;
        work.name = text(&object, "name").to_owned();
        if let Some(Value::Object(meta)) = object.get_mut("metadata") {
            meta.shift_remove("managedFields");
        }
        work.complete(&mut object, None)?;
        apply::track(&work.schema, None, &mut object, work.writer());
        let objects = self.registry.objects();
        let made = objects.create(work.kind, &work.namespace, object, work.options()).await?;
        warnings.truncate(WARNINGS_MAX);
        Ok(self.shown(StatusCode::CREATED, &work, shape, made, &warnings))
    }

    pub(super) async fn update(&self, target: Objects, ask: &Ask, body: Body) -> Refused {
        let shape = Shape::of(&ask.parts.headers, &ask.query)?;
        let work = self.work(&target, ask)?;
        let bytes = body::read(body).await?;
        let Document { value: mut object, duplicates, .. } =
            body::document(ask.content_type(), &bytes)?;
        work.settle_names(&mut object)?;
        let warnings = work.strict(&mut object, &duplicates)?;
        let expected = text(&object, "resourceVersion").to_owned();
        let done = self
            .modify(&work, |old| {
                work.expect_version(old, &expected)?;
                let mut new = work.status_only(old, object.clone());
                work.complete(&mut new, Some(old))?;
                apply::track(&work.schema, Some(old), &mut new, work.writer());
                Ok(new)
            })
            .await?;
        Ok(self.shown(StatusCode::OK, &work, shape, done, &warnings))
    }

    pub(super) async fn patch(&self, target: Objects, ask: &Ask, body: Body) -> Refused {
        let shape = Shape::of(&ask.parts.headers, &ask.query)?;
        let work = self.work(&target, ask)?;
        let bytes = body::read(body).await?;
        let patch = Patch::read(&work, ask, &bytes)?;
        if let Patch::Apply { object, force } = patch {
            return self.apply(work, shape, object, force).await;
        }
        let mut warnings = Vec::new();
        let done = self
            .modify(&work, |old| {
                let mut new = patch.onto(&work, old)?;
                if text(&new, "name") != work.name {
                    return Err(ApiError::bad_request(format!(
                        "the name of the object ({}) does not match the name on the URL ({})",
                        text(&new, "name"),
                        work.name
                    )));
                }
                warnings = work.strict(&mut new, &[])?;
                work.expect_version(old, text(&new, "resourceVersion"))?;
                let mut new = work.status_only(old, new);
                work.complete(&mut new, Some(old))?;
                apply::track(&work.schema, Some(old), &mut new, work.writer());
                Ok(new)
            })
            .await?;
        Ok(self.shown(StatusCode::OK, &work, shape, done, &warnings))
    }

    /// Server-side apply: creates the object when it is not there.
    async fn apply(&self, work: Work, shape: Shape, applied: Value, force: bool) -> Refused {
        let mut applied = applied;
        work.settle_names(&mut applied)?;
        let warnings = work.strict(&mut applied, &[])?;
        let expected = text(&applied, "resourceVersion").to_owned();
        let merged = |old: Option<&Value>| -> Result<Value, ApiError> {
            let mut new = apply::apply(&work.schema, old, &applied, work.writer(), force)
                .map_err(|all| ApiError::conflicts(work.kind.row(), &work.name, &all))?;
            work.complete(&mut new, old)?;
            Ok(new)
        };
        for _ in 0..4 {
            let changed = self
                .modify(&work, |old| {
                    work.expect_version(old, &expected)?;
                    merged(Some(old)).map(|new| work.status_only(old, new))
                })
                .await;
            match changed {
                Ok(done) => return Ok(self.shown(StatusCode::OK, &work, shape, done, &warnings)),
                Err(e) if e.reason == "NotFound" && work.part == Part::Spec => {}
                Err(error) => return Err(error),
            }
            let object = merged(None)?;
            let objects = self.registry.objects();
            let made = objects.create(work.kind, &work.namespace, object, work.options()).await;
            match made {
                Ok(made) => {
                    return Ok(self.shown(StatusCode::CREATED, &work, shape, made, &warnings));
                }
                // Somebody else created it meanwhile; apply to that.
                Err(ObjectError::AlreadyExists { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(ObjectError::Busy(format!("{} keeps coming and going", work.name)).into())
    }

    /// [`weft_registry::objects::Objects::modify`] for changes that refuse with an [`ApiError`].
    pub(super) async fn modify(
        &self,
        work: &Work,
        mut change: impl FnMut(&Value) -> Result<Value, ApiError>,
    ) -> Result<Value, ApiError> {
        let mut refused = None;
        let place = Change {
            kind: work.kind,
            namespace: &work.namespace,
            name: &work.name,
            part: work.part,
            options: work.options(),
        };
        let row = work.kind.row();
        let done = self
            .registry
            .objects()
            .modify(place, |old| {
                let old = in_version(row, work.version, old.clone());
                change(&old).map_err(|error| {
                    refused = Some(error);
                    ObjectError::BadRequest(String::new())
                })
            })
            .await;
        match (done, refused) {
            (Err(_), Some(error)) => Err(error),
            (done, _) => Ok(done?),
        }
    }

    pub(super) fn work(&self, target: &Objects, ask: &Ask) -> Result<Work, ApiError> {
        let status = target.sub.as_deref() == Some("status");
        let row = target.kind.row();
        if row.namespaced && target.namespace.is_none() {
            let message = "an empty namespace may not be set during creation; put it in the path";
            return Err(ApiError::bad_request(message));
        }
        Ok(Work {
            kind: target.kind,
            version: target.version,
            api_version: row.api_version_of(target.version),
            namespace: target.namespace.clone().unwrap_or_default(),
            name: target.name.clone().unwrap_or_default(),
            part: if status { Part::Status } else { Part::Spec },
            schema: schema::of(target.kind, target.version),
            validation: ask.query.validation()?,
            dry_run: ask.query.dry_run()?,
            manager: ask.manager(),
            time: self.timestamp(),
        })
    }

    fn shown(
        &self,
        code: StatusCode,
        work: &Work,
        shape: Shape,
        object: Value,
        warnings: &[String],
    ) -> Response {
        let value = shape.object(work.kind.row(), work.version, object, self.now_ms());
        let mut response = json_response(code, &value);
        for warning in warnings.iter().take(WARNINGS_MAX) {
            if let Ok(text) = HeaderValue::from_str(&format!("299 - {:?}", ascii(warning))) {
                response.headers_mut().append(http::header::WARNING, text);
            }
        }
        response
    }
}

// === impl Work ===

impl Work {
    pub(super) fn options(&self) -> WriteOptions {
        WriteOptions { dry_run: self.dry_run, system: false }
    }

    pub(super) fn row(&self) -> &'static Kind {
        self.kind.row()
    }

    fn writer(&self) -> Writer<'_> {
        Writer {
            manager: &self.manager,
            api_version: &self.api_version,
            time: &self.time,
            subresource: if self.part == Part::Status { "status" } else { "" },
        }
    }

    /// The object's type and names are the path's; where the body says them, it must agree.
    fn settle_names(&self, object: &mut Value) -> Result<(), ApiError> {
        let row = self.kind.row();
        let api = &self.api_version;
        for (field, wanted, what) in
            [("apiVersion", api.as_str(), "API version"), ("kind", row.kind, "kind")]
        {
            let own = object.at(field).as_str().unwrap_or_default();
            if !own.is_empty() && own != wanted {
                return Err(ApiError::bad_request(format!(
                    "the {what} in the data ({own}) does not match the expected {what} ({wanted})"
                )));
            }
            object.put(field, wanted);
        }
        if object.at("metadata").is_null() {
            object.put("metadata", Value::Object(Map::new()));
        }
        let Some(Value::Object(meta)) = object.get_mut("metadata") else {
            let message = "metadata: expected an object with at least a name";
            return Err(ApiError::bad_request(message));
        };
        let word = |name: &str| meta.get(name).and_then(Value::as_str).unwrap_or_default();
        let (namespace, name) = (word("namespace"), word("name"));
        if row.namespaced && !namespace.is_empty() && namespace != self.namespace {
            return Err(ApiError::bad_request(format!(
                "the namespace of the provided object does not match the namespace sent on the \
                 request ({namespace} and {})",
                self.namespace
            )));
        }
        if !self.name.is_empty() && !name.is_empty() && name != self.name {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                self.name
            )));
        }
        if !self.name.is_empty() {
            meta.insert("name".into(), self.name.as_str().into());
        }
        if row.namespaced {
            meta.insert("namespace".into(), self.namespace.as_str().into());
        }
        Ok(())
    }

    /// Drops unknown fields; tells them as warnings, or refuses them.
    fn strict(
        &self,
        object: &mut Value,
        duplicates: &[weft_base::issue::FieldPath],
    ) -> Result<Vec<String>, ApiError> {
        // More cannot be stored; said before any work is done on it.
        let size = object.to_string().len();
        if size > STORE_VALUE_BYTES_MAX {
            return Err(ApiError::too_large(STORE_VALUE_BYTES_MAX));
        }
        let unknown = check::prune(&self.schema, object);
        let mut told: Vec<String> =
            duplicates.iter().map(|path| format!("duplicate field {:?}", path.as_str())).collect();
        told.extend(unknown.0.iter().map(|issue| {
            let hint = issue.message.strip_prefix("unknown field; ");
            let hint = hint.filter(|h| h.starts_with("did you mean"));
            let hint = hint.map_or(String::new(), |h| format!(", {h}"));
            format!("unknown field {:?}{hint}", issue.path.as_str())
        }));
        match self.validation {
            Validation::Strict if !told.is_empty() => {
                let row = self.kind.row();
                Err(ApiError::bad_request(format!(
                    "{} in version {:?} cannot be handled as a {}: strict decoding error: {}",
                    row.kind,
                    self.version,
                    row.kind,
                    told.join(", ")
                )))
            }
            Validation::Ignore => Ok(Vec::new()),
            Validation::Warn | Validation::Strict => Ok(told),
        }
    }

    /// Defaults and validation.
    fn complete(&self, object: &mut Value, old: Option<&Value>) -> Result<(), ApiError> {
        let row = self.kind.row();
        check::fill(&self.schema, object);
        let mut found = check::validate(&self.schema, object, old);
        if self.part == Part::Status {
            // Whoever writes a status does not answer for the spec.
            found.0.retain(|i| i.path.as_str().starts_with("status"));
            return self.refuse(object, found);
        }
        // A status in the body of a main resource is dropped, whatever it says.
        let own = row.has(weft_kinds::kind::Subresource::Status);
        found.0.retain(|i| !(own && i.path.as_str().starts_with("status")));
        if row.family == Family::Builtin {
            if found.0.iter().all(|i| i.code != codes::WRONG_TYPE) {
                // The kind's own code reads fields, so they must have their types.
                builtin::complete(self.kind, object);
            }
            found.0.extend(builtin::judge(self.kind, object, old).0);
        }
        self.refuse(object, found)
    }

    fn refuse(&self, object: &Value, found: Issues) -> Result<(), ApiError> {
        match found.has_errors() {
            true => Err(ApiError::invalid(self.row(), text(object, "name"), &unique(found))),
            false => Ok(()),
        }
    }

    pub(super) fn expect_version(&self, old: &Value, expected: &str) -> Result<(), ApiError> {
        if expected.is_empty() || text(old, "resourceVersion") == expected {
            return Ok(());
        }
        let why = "the object has been modified; please apply your changes to the latest version \
                   and try again";
        let name = self.name.clone();
        Err(ObjectError::Conflict { kind: self.kind, name, why: why.into() }.into())
    }

    /// For the status subresource: the old object with the new status.
    fn status_only(&self, old: &Value, new: Value) -> Value {
        if self.part != Part::Status {
            return new;
        }
        let mut out = old.clone();
        out.put("status", new.at("status").clone());
        if new.at("metadata").at("managedFields").is_array() {
            let managed = new.at("metadata").at("managedFields").clone();
            if let Some(meta) = out.get_mut("metadata") {
                meta.put("managedFields", managed);
            }
        }
        out
    }
}

// === impl Patch ===

impl Patch {
    fn read(work: &Work, ask: &Ask, bytes: &[u8]) -> Result<Self, ApiError> {
        let media = ask.content_type().unwrap_or_default();
        let essence = media.split(';').next().unwrap_or_default().trim();
        let builtin = work.row().family == Family::Builtin;
        let accepted = if builtin {
            "application/json-patch+json, application/merge-patch+json, \
             application/strategic-merge-patch+json, application/apply-patch+yaml"
        } else {
            "application/json-patch+json, application/merge-patch+json, \
             application/apply-patch+yaml"
        };
        let format = format_of(Some(media)).unwrap_or(Format::Json);
        let value = || {
            let read = weft_kinds::decode::document(bytes, format);
            read.map(|d| d.value).map_err(|issue| ApiError::bad_request(issue.to_string()))
        };
        match essence {
            "application/strategic-merge-patch+json" if builtin => Ok(Self::Strategic(value()?)),
            "application/merge-patch+json" => Ok(Self::Merge(value()?)),
            "application/json-patch+json" => Ok(Self::Operations(value()?)),
            "application/apply-patch+yaml" | "application/apply-patch+json" => {
                if ask.query.text("fieldManager").is_empty() {
                    let message = "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: \
                                   Required value: is required for apply patch";
                    return Err(ApiError::bad_request(message));
                }
                let object = value()?;
                if !object.is_object() {
                    let message = "an apply patch is an object with the fields to own";
                    return Err(ApiError::bad_request(message));
                }
                if !object.at("metadata").at("managedFields").is_null() {
                    let message = "metadata.managedFields must be nil";
                    return Err(ApiError::bad_request(message));
                }
                Ok(Self::Apply { object, force: ask.query.flag("force") })
            }
            _ => Err(ApiError::media_type(media, accepted)),
        }
    }

    fn onto(&self, work: &Work, old: &Value) -> Result<Value, ApiError> {
        let done = match self {
            Self::Strategic(p) => patch::strategic(&work.schema, old, p),
            Self::Merge(p) => patch::merge(old, p),
            Self::Operations(p) => patch::operations(old, p),
            Self::Apply { object, .. } => Ok(object.clone()),
        };
        let new = done.map_err(|error| {
            let code = match error {
                patch::PatchError::Operation(_) => StatusCode::UNPROCESSABLE_ENTITY,
                _ => StatusCode::BAD_REQUEST,
            };
            let reason = if code == StatusCode::BAD_REQUEST { "BadRequest" } else { "Invalid" };
            ApiError::new(code, reason, error.to_string())
        })?;
        if !new.is_object() || !new.at("metadata").is_object() {
            let message = "the patch leaves no object with metadata";
            return Err(ApiError::bad_request(message));
        }
        Ok(new)
    }
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object.at("metadata").at(field).as_str().unwrap_or_default()
}

/// The schema and the code may find the same fault; it is told once.
fn unique(found: Issues) -> Issues {
    let mut out = Issues::default();
    for issue in found.0 {
        if !out.0.iter().any(|o| o.path == issue.path && o.code == issue.code) {
            out.0.push(issue);
        }
    }
    out
}

/// Header text: what is not printable ASCII becomes `?`.
fn ascii(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect()
}
