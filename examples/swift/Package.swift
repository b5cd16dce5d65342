// swift-tools-version:5.9
import PackageDescription

let package = Package(
    name: "Ask",
    platforms: [.macOS(.v12)],
    dependencies: [.package(name: "NCN", path: "../../ncn-bindings/swift")],
    targets: [.executableTarget(name: "Ask", dependencies: [.product(name: "NCN", package: "NCN")])],
    swiftLanguageVersions: [.v5]
)
