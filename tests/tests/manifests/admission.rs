//! Evaluates `ValidatingAdmissionPolicy` objects as an API server does from 1.30 on, as far as ours need it.
//!
//! The API server in the tests is too old for this kind, so the expressions are evaluated by another implementation of
//! CEL.

use std::collections::BTreeMap;
use std::sync::Arc;

use cel::{Context, Env, Program, Value as Cel};
use serde_json::{Value, json};

use super::{list, string};

/// A request that changes a Node, as it is passed to admission.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) user: String,
    pub(super) groups: Vec<String>,
    /// Claims of the token, by name.
    pub(super) extra: BTreeMap<String, Vec<String>>,
    pub(super) operation: &'static str,
    /// Empty for the Node itself.
    pub(super) subresource: &'static str,
    /// The Node before the request; null if the request creates it.
    pub(super) before: Value,
    /// The Node after the request.
    pub(super) after: Value,
}

/// A policy with its expressions compiled.
#[derive(Debug)]
pub(super) struct Policy {
    operations: Vec<String>,
    resources: Vec<String>,
    conditions: Vec<Program>,
    variables: Vec<(String, Program)>,
    pub(super) validations: Vec<Validation>,
}

/// One validation of a policy.
#[derive(Debug)]
pub(super) struct Validation {
    pub(super) message: String,
    expression: Program,
}

impl Policy {
    /// Compiles an object of kind `ValidatingAdmissionPolicy`.
    pub(super) fn compile(object: &Value) -> Self {
        let rules = list(object, "/spec/matchConstraints/resourceRules");
        let all = |pointer: &str| rules.iter().flat_map(|rule| list(rule, pointer)).map(text).collect();
        let expressions =
            |pointer: &str| list(object, pointer).iter().map(|entry| compiled(string(entry, "/expression")));
        let variables = list(object, "/spec/variables").iter().map(|entry| string(entry, "/name").to_owned());
        let messages =
            list(object, "/spec/validations").iter().map(|entry| string(entry, "/message").to_owned());
        Self {
            operations: all("/operations"),
            resources: all("/resources"),
            conditions: expressions("/spec/matchConditions").collect(),
            variables: variables.zip(expressions("/spec/variables")).collect(),
            validations: messages
                .zip(expressions("/spec/validations"))
                .map(|(message, expression)| Validation { message, expression })
                .collect(),
        }
    }

    /// The messages of all validations that fail; the request is admitted if there are none. An expression that can't be
    /// evaluated counts as failed, as with `failurePolicy: Fail`.
    pub(super) fn refusals(&self, request: &Request) -> Vec<String> {
        let resource = ["nodes", request.subresource].join("/");
        let resource = resource.trim_end_matches('/');
        let matches = self.operations.iter().any(|operation| operation == request.operation)
            && self.resources.iter().any(|name| name == resource);
        if !matches {
            return Vec::new();
        }
        let context = context(request);
        for condition in &self.conditions {
            match condition.execute(&context) {
                Ok(Cel::Bool(true)) => {}
                Ok(Cel::Bool(false)) => return Vec::new(),
                other => return vec![format!("a condition could not be evaluated: {other:?}")],
            }
        }
        let context = self.with_variables(context);
        let failed = self
            .validations
            .iter()
            .filter(|validation| !matches!(validation.expression.execute(&context), Ok(Cel::Bool(true))));
        failed.map(|validation| validation.message.clone()).collect()
    }

    /// A variable that can't be evaluated is left out, so that expressions that use it fail.
    fn with_variables(&self, mut context: Context<'static, 'static>) -> Context<'static, 'static> {
        let mut variables: BTreeMap<String, Value> = BTreeMap::new();
        for (name, expression) in &self.variables {
            if let Ok(value) = expression.execute(&context)
                && let Ok(value) = value.json()
            {
                variables.insert(name.clone(), value);
                context.add_variable("variables", json!(variables)).unwrap();
            }
        }
        context
    }
}

fn compiled(expression: &str) -> Program {
    Env::stdlib().compile(expression).unwrap_or_else(|error| panic!("{expression}: {error}"))
}

fn context(request: &Request) -> Context<'static, 'static> {
    let mut user = json!({"username": request.user, "groups": request.groups});
    if !request.extra.is_empty() {
        user["extra"] = json!(request.extra);
    }
    let mut review = json!({"operation": request.operation, "userInfo": user});
    if !request.subresource.is_empty() {
        review["subResource"] = json!(request.subresource);
    }
    let mut context = Context::with_env(Arc::new(Env::stdlib()));
    for (name, value) in [("request", &review), ("object", &request.after), ("oldObject", &request.before)] {
        context.add_variable(name, value.clone()).unwrap();
    }
    context
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}
