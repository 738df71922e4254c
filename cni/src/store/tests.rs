use super::*;

fn attachment(container: &str) -> Attachment {
    Attachment { container: container.to_owned(), interface: "eth0".to_owned() }
}

fn addresses() -> Vec<IpAddr> {
    vec!["10.244.1.2".parse().unwrap(), "fd00::2".parse().unwrap()]
}

fn reserve(store: &Store, container: &str) -> Stored {
    store.reserve(&attachment(container), Path::new("/run/netns/x"), &addresses(), &[]).unwrap()
}

#[test]
fn the_name_reserves_even_if_the_file_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let stored = reserve(&store, "c1");
    std::fs::write(&stored.file, "").unwrap();
    assert_eq!(store.taken().unwrap(), addresses().into_iter().collect());
    assert_eq!(store.find(&attachment("c1")).unwrap(), std::slice::from_ref(&stored));
    assert_eq!(store.last(true), Some(addresses()[0]));
    assert_eq!(store.last(false), Some(addresses()[1]));
    store.release(&stored).unwrap();
    store.release(&stored).unwrap();
    assert!(store.taken().unwrap().is_empty());
}

#[test]
fn the_file_names_its_container() {
    let dir = tempfile::tempdir().unwrap();
    let stored = reserve(&Store::open(dir.path()).unwrap(), "c1");
    let text = std::fs::read_to_string(&stored.file).unwrap();
    assert_eq!(text, r#"{"container":"c1","interface":"eth0","netns":"/run/netns/x","ports":[]}"#);
}

#[test]
fn what_a_killed_call_was_writing_is_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let rest = dir.path().join("attachments/.new-mveth00@10.244.1.9");
    std::fs::write(&rest, "").unwrap();
    assert!(store.all().unwrap().is_empty());
    assert!(!rest.exists());
}

#[test]
fn a_reboot_frees_everything_but_what_is_not_ours() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let now = reserve(&store, "c1");
    let former = dir.path().join("attachments/mveth0011223344@00000000@10.244.1.7");
    let foreign = dir.path().join("attachments/README");
    for path in [&former, &foreign] {
        std::fs::write(path, "").unwrap();
    }
    assert_eq!(store.all().unwrap(), [now]);
    assert!(!former.exists());
    assert!(foreign.exists());
}

#[test]
fn a_lock_timeout_is_retryable() {
    let dir = tempfile::tempdir().unwrap();
    let held = Store::open(dir.path()).unwrap();
    let refused = Store::lock(dir.path(), Duration::from_millis(5)).unwrap_err();
    assert!(matches!(refused, CniError::Locked { .. }));
    assert_eq!(refused.code(), 11);
    drop(held);
    Store::lock(dir.path(), Duration::from_millis(5)).unwrap();
}

#[test]
fn who_waits_gets_the_lock_as_soon_as_it_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let held = Store::open(dir.path()).unwrap();
    let waits = std::thread::spawn({
        let dir = dir.path().to_owned();
        move || Store::lock(&dir, LOCK_TIMEOUT).map(drop)
    });
    std::thread::sleep(Duration::from_millis(20));
    assert!(!waits.is_finished());
    drop(held);
    waits.join().unwrap().unwrap();
}

#[test]
fn many_adds_run_at_once_and_gc_waits_for_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gate");
    let exclusive = |timeout| lock(&path, LockMode::Exclusive, timeout);
    let one = AttachLock::shared(dir.path()).unwrap();
    let two = AttachLock::shared(dir.path()).unwrap();
    drop(one);
    assert!(matches!(exclusive(Duration::from_millis(5)), Err(CniError::Locked { .. })));
    drop(two);
    let collecting = AttachLock::exclusive(dir.path()).unwrap();
    let attach = lock(&path, LockMode::Shared, Duration::from_millis(5));
    assert!(matches!(attach, Err(CniError::Locked { .. })));
    drop(collecting);
}

#[test]
fn without_a_directory_nothing_is_stored_and_none_is_created() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("none");
    assert!(Store::open_existing(&missing).unwrap().is_none());
    assert!(!missing.exists());
}

#[test]
fn state_is_removed_once_no_pod_is_attached() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("state");
    assert!(!forget(&dir).unwrap());
    let stored = reserve(&Store::open(&dir).unwrap(), "c1");
    assert!(matches!(forget(&dir), Err(CniError::Attached { count: 1 })));
    Store::open(&dir).unwrap().release(&stored).unwrap();
    assert!(forget(&dir).unwrap());
    assert!(!dir.exists());
}

#[test]
fn names_fit_the_kernel_and_differ() {
    let one = attachment("c1").host_link();
    assert_eq!(one.len(), 15);
    assert_ne!(one, attachment("c2").host_link());
    assert_ne!(one, Attachment { interface: "eth1".to_owned(), ..attachment("c1") }.host_link());
    // The parts are separated: a container's name can't borrow from the interface's.
    let shifted = Attachment { container: "c1e".to_owned(), interface: "th0".to_owned() };
    assert_ne!(one, shifted.host_link());
}
