// SPDX-License-Identifier: Apache-2.0
//! The committed gRPC code is what the proto file says. No `protoc` is needed: the compiler is
//! protox, in Rust. `UPDATE_CODEGEN=1 cargo test -p shop --test codegen` writes the files anew.

use std::fs;
use std::path::Path;

const PROTO: &str = "shop.product.v1.proto";
const HEADER: &str = "// SPDX-License-Identifier: Apache-2.0\n";

#[test]
fn committed_code_matches_the_proto() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fds = protox::compile([PROTO], [root.join("proto")]).expect("the proto compiles");
    let out = tempfile::tempdir().expect("a temporary directory");
    let set = out.path().join("set.bin");
    tonic_prost_build::configure()
        .out_dir(out.path())
        .emit_rerun_if_changed(false)
        .file_descriptor_set_path(&set)
        .compile_fds(fds.clone())
        .expect("code is generated");
    let code = fs::read_to_string(out.path().join("shop.product.v1.rs")).expect("code");
    let code = format!("{HEADER}{code}").into_bytes();
    let set = prost::Message::encode_to_vec(&fds);
    check(&root.join("src/gen/shop.product.v1.rs"), &code);
    check(&root.join("src/gen/shop.product.v1.bin"), &set);
}

fn check(path: &Path, want: &[u8]) {
    if std::env::var_os("UPDATE_CODEGEN").is_some() {
        fs::create_dir_all(path.parent().expect("a parent")).expect("the directory is made");
        fs::write(path, want).expect("the file is written");
    }
    let have = fs::read(path).unwrap_or_default();
    assert!(
        have == want,
        "{} is not what the proto says; run UPDATE_CODEGEN=1 cargo test -p shop --test codegen",
        path.display()
    );
}
