// SPDX-License-Identifier: Apache-2.0
//! Rules that are written by name: service and node identities, and templated policies. Pure.

use serde_json::{Map, Value, json};

use crate::consul::body::Fields;
use crate::consul::error::Refusal;

/// A templated policy: its name, what it is for, and whether it takes a name.
#[derive(Debug)]
pub struct Template {
    pub name: &'static str,
    pub description: &'static str,
    pub takes_name: bool,
    pub text: &'static str,
}

pub const TEMPLATES: [Template; 7] = [
    Template {
        name: "builtin/service",
        description: "Gives the token or role permissions to register a service and discover \
                      services in the Consul catalog.",
        takes_name: true,
        text: concat!(
            "service \"{{.Name}}\" {\n\tpolicy = \"write\"\n}\n",
            "service \"{{.Name}}-sidecar-proxy\" {\n\tpolicy = \"write\"\n}\n",
            "service_prefix \"\" {\n\tpolicy = \"read\"\n}\n",
            "node_prefix \"\" {\n\tpolicy = \"read\"\n}\n",
        ),
    },
    Template {
        name: "builtin/node",
        description: "Gives the token or role permissions for a register an agent/node into the \
                      catalog.",
        takes_name: true,
        text: "node \"{{.Name}}\" {\n\tpolicy = \"write\"\n}\nservice_prefix \"\" {\n\tpolicy = \
               \"read\"\n}\n",
    },
    Template {
        name: "builtin/dns",
        description: "Gives the token or role permissions for the Consul DNS to query services \
                      in the network.",
        takes_name: false,
        text: "node_prefix \"\" {\n\tpolicy = \"read\"\n}\nservice_prefix \"\" {\n\tpolicy = \
               \"read\"\n}\nquery_prefix \"\" {\n\tpolicy = \"read\"\n}\n",
    },
    Template {
        name: "builtin/workload-identity",
        description: "Gives the token or role read permissions on services of a workload.",
        takes_name: true,
        text: "service_prefix \"\" {\n\tpolicy = \"read\"\n}\nkey_prefix \"{{.Name}}\" {\n\tpolicy \
               = \"read\"\n}\n",
    },
    Template {
        name: "builtin/api-gateway",
        description: "Gives the token or role permissions for a Consul api gateway.",
        takes_name: true,
        text: "mesh = \"read\"\nnode_prefix \"\" {\n\tpolicy = \"read\"\n}\nservice_prefix \"\" \
               {\n\tpolicy = \"read\"\n}\nservice \"{{.Name}}\" {\n\tpolicy = \"write\"\n}\n",
    },
    Template {
        name: "builtin/nomad-server",
        description: "Gives the token or role permissions required for integration with a nomad \
                      server.",
        takes_name: false,
        text: "acl = \"write\"\nagent_prefix \"\" {\n\tpolicy = \"read\"\n}\nnode_prefix \"\" \
               {\n\tpolicy = \"read\"\n}\nservice_prefix \"\" {\n\tpolicy = \"write\"\n}\n",
    },
    Template {
        name: "builtin/nomad-client",
        description: "Gives the token or role permissions required for integration with a nomad \
                      client.",
        takes_name: false,
        text: "agent_prefix \"\" {\n\tpolicy = \"read\"\n}\nnode_prefix \"\" {\n\tpolicy = \
               \"read\"\n}\nservice_prefix \"\" {\n\tpolicy = \"write\"\n}\nkey_prefix \"\" \
               {\n\tpolicy = \"read\"\n}\n",
    },
];

pub fn find(name: &str) -> Option<&'static Template> {
    TEMPLATES.iter().find(|template| template.name == name)
}

// === impl Template ===

impl Template {
    /// As `templated-policies` lists it.
    pub fn shape(&self) -> Value {
        let schema = match self.takes_name {
            true => json!({
                "type": "object",
                "properties": {"name": {"type": "string", "$ref": "#/definitions/min-length-one"}},
                "required": ["name"],
                "definitions": {"min-length-one": {"type": "string", "minLength": 1}},
            })
            .to_string(),
            false => String::new(),
        };
        json!({
            "TemplateName": self.name,
            "Schema": schema,
            "Template": self.text,
            "Description": self.description,
        })
    }

    /// Its rules for a name.
    ///
    /// # Errors
    /// When a name is needed, or no name.
    pub fn rules(&self, name: &str) -> Result<String, Refusal> {
        if self.takes_name {
            check_name(name)?;
        }
        Ok(self.text.replace("{{.Name}}", name))
    }
}

/// Whether what is for these datacentres is for this one; `None` is any of them.
pub fn is_for(datacenters: &[String], datacenter: Option<&str>) -> bool {
    datacenters.is_empty() || datacenter.is_none_or(|own| datacenters.iter().any(|dc| dc == own))
}

/// The rules of a token's or role's service and node identities and templated policies, as far as
/// they are for a datacentre; with `None` all of them.
///
/// # Errors
/// When one of them is none.
pub fn identities(
    of: &Map<String, Value>,
    datacenter: Option<&str>,
) -> Result<Vec<String>, Refusal> {
    let fields = Fields::new(of, "");
    let mut out = Vec::new();
    for one in fields.objects("ServiceIdentities")? {
        let given = Fields::new(one, "ServiceIdentities.");
        let rules = rules_of("builtin/service", &given.text("ServiceName")?)?;
        if is_for(&given.list("Datacenters")?, datacenter) {
            out.push(rules);
        }
    }
    for one in fields.objects("NodeIdentities")? {
        let given = Fields::new(one, "NodeIdentities.");
        let rules = rules_of("builtin/node", &given.text("NodeName")?)?;
        if is_for(&[given.text("Datacenter")?], datacenter) {
            out.push(rules);
        }
    }
    for one in fields.objects("TemplatedPolicies")? {
        let given = Fields::new(one, "TemplatedPolicies.");
        let name = match given.object("TemplateVariables")? {
            Some(variables) => Fields::new(variables, "TemplateVariables.").text("Name")?,
            None => String::new(),
        };
        let rules = rules_of(&given.text("TemplateName")?, &name)?;
        if is_for(&given.list("Datacenters")?, datacenter) {
            out.push(rules);
        }
    }
    Ok(out)
}

// === helpers ===

fn rules_of(template: &str, name: &str) -> Result<String, Refusal> {
    match find(template) {
        Some(template) => template.rules(name),
        None => Err(Refusal::bad(format!("no such ACL templated policy: {template:?}"))),
    }
}

/// Names become part of rules: nothing in them may be read as HCL.
fn check_name(name: &str) -> Result<(), Refusal> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match !name.is_empty() && name.len() <= 256 && name.chars().all(fine) {
        true => Ok(()),
        false => Err(Refusal::bad(format!(
            "{name:?} is no name for an identity; use letters, digits, '-', '_' and '.'"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_reads_as_rules() {
        for template in &TEMPLATES {
            let rules = template.rules("web").unwrap();
            assert!(super::super::rules::parse(&"t".into(), &rules).is_ok(), "{rules}");
        }
    }

    #[test]
    fn a_name_cannot_bring_rules_of_its_own() {
        let template = find("builtin/service").unwrap();
        for name in ["", "a\" { policy = \"write\" } acl = \"write\" #", "a\nb"] {
            assert!(template.rules(name).is_err(), "{name:?}");
        }
    }
}
