# `make` alone lists the targets.

.DEFAULT_GOAL := help
SHELL := /bin/bash
TARGET := $(or $(CARGO_TARGET_DIR),target)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## three nodes with two pods each on this machine, their traffic and a report (KEEP=1 leaves them running)
	scripts/setup.sh demo
	cargo build --locked --workspace --bins
	$(TARGET)/debug/demo

.PHONY: test
test: ## set up what is missing, then lints and all tests; writes target/test/report.json
	scripts/test.sh

.PHONY: test-kernel
test-kernel: ## the tests that need WireGuard in the kernel, in a virtual machine (FILTER=name for some of them)
	scripts/kernel-vm/assets.sh >/dev/null
	scripts/test-kernel.sh $(FILTER)

.PHONY: test-upgrade
test-upgrade: ## upgrade a mesh from version 0.1 under traffic, with both backends (BACKEND=userspace or kernel: one of them)
	scripts/setup.sh demo
	scripts/kernel-vm/assets.sh >/dev/null
	scripts/test-upgrade.sh $(BACKEND)

.PHONY: explore
explore: ## the models of rotation, PQ agreement and paths, 120,000, 12,000 and 20,000 random runs, a crash at every boundary of a rotation, and 50 emergency rotations whose keys are copied
	ROTATION_CASES=$${ROTATION_CASES:-40000} PQ_CASES=$${PQ_CASES:-6000} cargo test --locked --workspace --test rotation --test pq -- explore
	PATHS_CASES=$${PATHS_CASES:-20000} scripts/explore-paths.sh
	cargo build --locked --workspace --bins
	CRASHES=all cargo test --locked --workspace --test rotation -- --nocapture crash::
	EMERGENCIES=50 cargo test --locked --workspace --test rotation -- --nocapture stolen::keys_that_are_copied

.PHONY: sanitize
sanitize: ## the engine's tests and the fuzz corpora under AddressSanitizer
	scripts/sanitize.sh

.PHONY: lint
lint: ## formatting, lints, import rules, documentation; licences and shell scripts if their tools are installed
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	scripts/layering.sh
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items
	@if command -v shellcheck >/dev/null; then shellcheck -x --shell=bash --severity=warning scripts/*.sh scripts/kernel-vm/*.sh scripts/hooks/* .ci/run; \
		else echo "not run: shellcheck (package shellcheck)"; fi
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --locked check bans licenses sources; \
		else echo "not run: cargo-deny (cargo install cargo-deny)"; fi

.PHONY: book
book: ## the documents as a book in target/book/html; needs mdbook
	scripts/book.sh

.PHONY: image
image: ## build the container image as an OCI archive in target/image (IMAGE=name: another name than that in deploy/base)
	scripts/image.sh

.PHONY: kind-load
kind-load: ## load the image that `make image` built into the nodes of a kind cluster (CLUSTER=name)
	kind load image-archive $(TARGET)/image/meshd-*.tar $(if $(CLUSTER),--name $(CLUSTER))

.PHONY: kubectl-meshd
kubectl-meshd: ## build the plugin for kubectl; copy it to a directory of PATH for `kubectl meshd status`
	cargo build --locked --release --package kubectl-meshd
	@echo "$(TARGET)/release/kubectl-meshd"

.PHONY: cluster
cluster: ## a Kubernetes cluster on this machine, with meshd in it (NODES=3, DUAL=1 or IPV6=1, PROXY=iptables, CLUSTER=id, KUBEBUILDER_ASSETS=programs)
	scripts/cluster.sh --nodes $(or $(NODES),3) --family $(if $(DUAL),dual,$(if $(IPV6),ipv6,ipv4)) \
		--proxy-mode $(or $(PROXY),iptables) $(if $(CLUSTER),--id $(CLUSTER))

.PHONY: prove-cluster
prove-cluster: ## two clusters at once, the end-to-end suite on both, and nothing left of them (NODES, DUAL, IPV6, PROXY, DISTURB=1)
	START=prove-cluster scripts/cluster.sh --nodes $(or $(NODES),2) --family $(if $(DUAL),dual,$(if $(IPV6),ipv6,ipv4)) \
		--proxy-mode $(or $(PROXY),iptables)

.PHONY: prove-suite
prove-suite: ## the end-to-end suite fails in the right rows on broken networks, a quarter of an hour (ONLY=name of one in tests/src/bin/prove-suite/broken.toml)
	. scripts/apt.sh && install_missing "/usr/lib/cni/bridge containernetworking-plugins"
	cargo build --locked --quiet --workspace --bins
	ONLY=$(ONLY) START=prove-suite scripts/cluster.sh --nodes 2

.PHONY: cluster-list
cluster-list: ## list the clusters of this checkout
	@$(TARGET)/debug/cluster list

.PHONY: cluster-enter
cluster-enter: ## a shell on a host of a cluster (NODE=n1, n2, ..., api or outside; CLUSTER=id)
	@$(TARGET)/debug/cluster enter $(if $(CLUSTER),--id $(CLUSTER)) $(or $(NODE),api)

.PHONY: cluster-logs
cluster-logs: ## list the logs of a cluster, or print one (LOG=n1-kubelet, CLUSTER=id)
	@$(TARGET)/debug/cluster logs $(if $(CLUSTER),--id $(CLUSTER)) $(LOG)

.PHONY: cluster-delete
cluster-delete: ## delete a cluster (CLUSTER=id, or ALL=1)
	@$(TARGET)/debug/cluster delete $(if $(ALL),--all,$(if $(CLUSTER),--id $(CLUSTER)))

# A KUBECONFIG of the environment is not meant: it may be anybody's cluster. That of `make cluster` is asked from the host
# that is outside of it.
E2E_FROM = $(if $(filter command line,$(origin KUBECONFIG)),KUBECONFIG=$(KUBECONFIG),$(TARGET)/debug/cluster enter --net $(if $(CLUSTER),--id $(CLUSTER)) outside)
# What a cluster of others lacks is skipped; here it has to be listed.
E2E_NOT_HERE = $(if $(filter command line,$(origin KUBECONFIG)),,--not-here e2e/not-here.toml)
# Daemons of others are restarted on request only.
E2E_DISTURB = $(if $(filter command line,$(origin KUBECONFIG)),$(if $(DISTURB),--disturb),--disturb)

.PHONY: e2e
e2e: ## the end-to-end suite on the cluster of `make cluster`, or on any other (KUBECONFIG=file, E2E_IMAGE=name, DISTURB=1, ONLY=N3,N4, KEEP=1, OUT=file.json, WITH=former.json)
	cargo build --locked --quiet --package e2e --package e2e-pod
	$(E2E_FROM) $(TARGET)/debug/e2e $(E2E_NOT_HERE) --out $(or $(OUT),$(TARGET)/e2e/report.json) $(E2E_DISTURB) $(if $(ONLY),--only $(ONLY)) $(if $(WITH),--with $(WITH)) $(if $(KEEP),--keep)

.PHONY: e2e-pictures
e2e-pictures: ## render the page of an end-to-end run with Chromium, light, dark and as on a phone, into target/e2e (PAGE=file, HEIGHT=pixels)
	scripts/e2e-pictures.sh $(or $(PAGE),$(TARGET)/e2e/report.html) $(TARGET)/e2e $(HEIGHT)

.PHONY: hooks
hooks: ## have git run the fast lints before each commit in this clone
	git config core.hooksPath scripts/hooks

.PHONY: bench-cni
bench-cni: ## compare the time of a CNI ADD with that of Debian's ptp and host-local
	. scripts/apt.sh && install_missing "/usr/lib/cni/ptp containernetworking-plugins"
	cargo bench --locked --package cni --bench add

.PHONY: bench-tunnel
bench-tunnel: ## compare the userspace engine with wireguard-go, gotatun and boringtun (QUICK=1: a short run)
	. scripts/apt.sh && install_missing $$'iperf3 iperf3\nip iproute2\nping iputils-ping\nwg wireguard-tools\nwireguard-go wireguard-go'
	WIREGUARDS=$$(scripts/wireguards.sh) cargo bench --locked --package tunnel --bench versus $(if $(QUICK),-- --quick)

.PHONY: bench-plan
bench-plan: ## time of each pure step of a turn at 50 to 5,000 nodes (QUICK=1: fewer repetitions)
	cargo bench --locked --package plan --bench turn $(if $(QUICK),-- --quick)

.PHONY: chaos
chaos: ## random faults on a mesh under traffic (SEEDS=20 more seeds, SEED=7 only that one, SECONDS_EACH=120)
	scripts/chaos.sh

.PHONY: bench-scale
bench-scale: ## cost of one daemon among 50, 1,000 and 5,000 played nodes; writes target/scale (QUICK=1: 50 and 500; N=50,200; SCENARIOS=start,idle; IGNORE_GOALS=1)
	scripts/setup.sh demo
	scripts/kube-assets.sh >/dev/null
	scripts/bench-scale.sh

.PHONY: prove-rotation
prove-rotation: ## rotate keys 26 times under traffic and count every packet; writes target/rotation
	scripts/setup.sh demo
	cargo build --locked --workspace --bins
	$(TARGET)/debug/prove-rotation

.PHONY: prove-paths
prove-paths: ## seven nodes behind four kinds of NAT find each other, and keep to it; writes target/paths (QUICK=1, ONLY=move,relay, CARRIER=1, PQ=require, BACKEND=kernel or mixed)
	scripts/setup.sh demo
	scripts/prove-paths.sh

.PHONY: fuzz
fuzz: ## run each fuzz target for FUZZ_SECONDS (20); needs cargo-fuzz and a C++ compiler
	scripts/fuzz.sh

.PHONY: clean-lab
clean-lab: ## stop demos of this checkout that KEEP=1 left running, and remove the logs of labs
	scripts/clean-lab.sh
