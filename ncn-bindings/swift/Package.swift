// swift-tools-version:5.9
import PackageDescription

// The library itself is built by Cargo: README.md has the command.
let package = Package(
    name: "NCN",
    platforms: [.macOS(.v12), .iOS(.v15)],
    products: [.library(name: "NCN", targets: ["NCN"])],
    targets: [
        .systemLibrary(name: "NCNCoreFFI"),
        // Generated: `cargo xtask codegen`.
        .target(name: "NCNCore", dependencies: ["NCNCoreFFI"], linkerSettings: [.linkedLibrary("ncn_bindings")]),
        .target(name: "NCN", dependencies: ["NCNCore"]),
        .testTarget(name: "NCNTests", dependencies: ["NCN"]),
    ],
    swiftLanguageVersions: [.v5]
)
