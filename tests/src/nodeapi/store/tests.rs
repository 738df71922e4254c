//! The rules of the store one by one; that they are the real server's is what the contract tests are for.

use super::*;

const CONTEXT: RequestContext<'static> =
    RequestContext { now: "2026-01-01T00:00:00Z", uid: "uid-1", dry_run: false };

fn store() -> Store {
    let mut store = Store::new();
    store.create(json!({"metadata": {"name": "n1", "annotations": {"a": "1"}}}), CONTEXT).unwrap();
    store
}

#[test]
fn merge_patches_as_the_rfcs_appendix() {
    let cases = [
        (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
        (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
        (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
        (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
        (r#"["a","b"]"#, r#"["c","d"]"#, r#"["c","d"]"#),
        (r#"{"a":"foo"}"#, "null", "null"),
        (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"e":null,"a":1}"#),
        ("[1,2]", r#"{"a":"b","c":null}"#, r#"{"a":"b"}"#),
        ("{}", r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
    ];
    for (target, patch, want) in cases {
        let mut target: Value = serde_json::from_str(target).unwrap();
        merge(&mut target, &serde_json::from_str(patch).unwrap());
        assert_eq!(target, serde_json::from_str::<Value>(want).unwrap(), "{patch}");
    }
}

#[test]
fn a_patch_that_changes_nothing_makes_no_revision() {
    let mut store = store();
    let before = store.revision();
    store
        .patch("n1", Part::Main, &json!({"metadata": {"annotations": {"a": "1", "b": null}}}), false)
        .unwrap();
    assert_eq!((store.revision(), store.since(before).unwrap().count()), (before, 0));
}

#[test]
fn a_dry_run_checks_and_keeps_nothing() {
    let mut store = store();
    let before = store.revision();
    let patch = json!({"metadata": {"annotations": {"a": "2"}}});
    let shown = store.patch("n1", Part::Main, &patch, true).unwrap();
    assert_eq!(text(&shown, "/metadata/annotations/a"), Some("2"));
    store.create(json!({"metadata": {"name": "n2"}}), RequestContext { dry_run: true, ..CONTEXT }).unwrap();
    store.delete("n1", None, true).unwrap();
    assert!(store.patch("n9", Part::Main, &patch, true).is_err());
    assert_eq!((store.revision(), store.all().count()), (before, 1));
    assert_eq!(text(&store.get("n1").unwrap(), "/metadata/annotations/a"), Some("1"));
}

#[test]
fn status_and_spec_are_changed_by_their_own_doors_only() {
    let mut store = store();
    let both = json!({"spec": {"unschedulable": true}, "status": {"phase": "Running"}});
    let main = store.patch("n1", Part::Main, &both, false).unwrap();
    assert_eq!((&main["spec"], &main["status"]), (&json!({"unschedulable": true}), &json!({})));
    let status = store.patch(
        "n1",
        Part::Status,
        &json!({"spec": {"unschedulable": null}, "status": {"phase": "Running"}}),
        false,
    );
    let status = status.unwrap();
    assert_eq!(
        (&status["spec"], &status["status"]),
        (&json!({"unschedulable": true}), &json!({"phase": "Running"}))
    );
}

#[test]
fn pages_are_of_one_revision_until_they_are_forgotten() {
    let mut store = store();
    for name in ["n2", "n3", "n4"] {
        store.create(json!({"metadata": {"name": name}}), CONTEXT).unwrap();
    }
    let first = store.list(|_, _| true, 2, None).unwrap();
    let (start, left) = first.rest.clone().unwrap();
    assert_eq!((first.items.len(), left), (2, 2));
    store.delete("n4", None, false).unwrap();
    let second = store.list(|_, _| true, 2, Some((first.revision, &start))).unwrap();
    assert_eq!((second.items.len(), second.rest), (2, None));
    for _ in 0..SNAPSHOTS {
        store.list(|_, _| true, 1, None).unwrap();
    }
    assert_eq!(store.list(|_, _| true, 2, Some((first.revision, &start))).unwrap_err().code(), 410);
}

#[test]
fn history_is_in_order_and_what_is_forgotten_is_gone() {
    let mut store = store();
    let start = store.revision();
    store.patch("n1", Part::Main, &json!({"metadata": {"labels": {"x": "y"}}}), false).unwrap();
    store.delete("n1", None, false).unwrap();
    let kinds: Vec<_> = store.since(start).unwrap().map(|change| (change.kind, change.revision)).collect();
    assert_eq!(kinds, [("MODIFIED", start + 1), ("DELETED", start + 2)]);
    let deleted = store.since(start + 1).unwrap().next().unwrap().object.clone();
    assert_eq!(text(&deleted, "/metadata/resourceVersion"), Some((start + 2).to_string().as_str()));
    store.forget();
    assert_eq!(store.since(start + 1).map(Iterator::count).unwrap_err().code(), 410);
    assert_eq!(store.since(start + 2).unwrap().count(), 0);
}
