// swift-tools-version: 6.1
// Two planes: EdgeWire/EdgeYAML/EdgeJobs (control) and CEdgeKernels … EdgeTrain (data) meet only in `edgetuned`.
// Arrows between targets point down the map in README.md; Tests/TidyTests holds them to it.
import PackageDescription

let package = Package(
    name: "edgetune",
    products: [
        .executable(name: "edgetuned", targets: ["edgetuned"]),
        .executable(name: "edgetune", targets: ["edgetune"]),
        .executable(name: "edgebench", targets: ["edgebench"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
        .package(url: "https://github.com/apple/swift-crypto", from: "4.5.2"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
        .package(url: "https://github.com/apple/swift-nio", from: "2.101.2"),
        .package(url: "https://github.com/apple/swift-nio-ssl", from: "2.37.6"),
        .package(url: "https://github.com/groue/GRDB.swift", from: "7.10.0"),
        // Without its default traits Hummingbird needs FoundationEssentials only.
        .package(url: "https://github.com/hummingbird-project/hummingbird", from: "2.28.1", traits: []),
        .package(url: "https://github.com/jpsim/Yams", from: "6.2.2"),
        .package(url: "https://github.com/swift-server/async-http-client", from: "1.37.0"),
        .package(url: "https://github.com/swift-server/swift-service-lifecycle", from: "2.13.0"),
        .package(url: "https://github.com/swiftlang/swift-subprocess", from: "1.0.2", traits: []),
    ],
    targets: [
        // Data plane.
        .systemLibrary(name: "CLZ4", pkgConfig: "liblz4", providers: [.apt(["liblz4-dev"])]),
        // -O3 in debug too: a debug test of an unoptimised kernel takes minutes. Only an application may say
        // `unsafeFlags`, and nobody depends on this package.
        .target(name: "CEdgeKernels", cSettings: [.unsafeFlags(["-O3", "-ffp-contract=off"])]),
        .target(name: "EdgeTensor", dependencies: ["CEdgeKernels"]),
        .target(name: "EdgeFormats", dependencies: ["CLZ4"]),
        .target(name: "EdgeModel", dependencies: ["EdgeTensor", "EdgeFormats"]),
        .target(name: "EdgeTrain", dependencies: ["EdgeModel", "EdgeFormats", "EdgeTensor", "CEdgeKernels"]),

        // Control plane.
        .systemLibrary(name: "CSystemd", pkgConfig: "libsystemd", providers: [.apt(["libsystemd-dev"])]),
        // What a worker does to itself: Landlock and seccomp.
        .target(name: "CEdgeSandbox"),
        .target(name: "EdgeWire"),
        .target(name: "EdgeYAML", dependencies: ["EdgeWire", .product(name: "Yams", package: "Yams")]),
        .target(
            name: "EdgeJobs",
            dependencies: [
                "EdgeWire",
                .product(name: "Crypto", package: "swift-crypto"),
                .product(name: "GRDB", package: "GRDB.swift"),
                .product(name: "Subprocess", package: "swift-subprocess"),
            ]),

        // Executables.
        .executableTarget(
            name: "edgetuned",
            dependencies: [
                "EdgeWire", "EdgeYAML", "EdgeJobs", "EdgeTrain", "EdgeModel", "EdgeFormats", "EdgeTensor", "CSystemd",
                "CEdgeSandbox",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
                .product(name: "Hummingbird", package: "hummingbird"),
                .product(name: "Logging", package: "swift-log"),
                .product(name: "NIOPosix", package: "swift-nio"),
                .product(name: "ServiceLifecycle", package: "swift-service-lifecycle"),
            ]),
        .executableTarget(
            name: "edgetune",
            dependencies: [
                "EdgeWire", "EdgeYAML",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
                // For `models pull` alone.
                .product(name: "AsyncHTTPClient", package: "async-http-client"),
                .product(name: "Crypto", package: "swift-crypto"),
                .product(name: "NIOCore", package: "swift-nio"),
                .product(name: "NIOHTTP1", package: "swift-nio"),
                .product(name: "NIOPosix", package: "swift-nio"),
                .product(name: "NIOSSL", package: "swift-nio-ssl"),
            ]),
        .executableTarget(
            name: "edgebench",
            dependencies: [
                "EdgeTrain", "EdgeModel", "EdgeFormats", "EdgeTensor", "CEdgeKernels", "EdgeJobs", "EdgeWire",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ]),

        // Tests, one target per source target; run optimised: `swift test -c release`.
        .target(name: "EdgeTestSupport", dependencies: ["EdgeFormats", "EdgeJobs", "EdgeWire"], path: "Tests/EdgeTestSupport"),
        .testTarget(name: "EdgeTensorTests", dependencies: ["EdgeTensor", "CEdgeKernels"]),
        .testTarget(name: "EmulatedKernelsTests", dependencies: ["EdgeTestSupport"]),
        .testTarget(name: "EdgeFormatsTests", dependencies: ["EdgeFormats", "EdgeTestSupport"]),
        .testTarget(
            name: "EdgeTrainTests", dependencies: ["EdgeTrain", "EdgeModel", "EdgeFormats", "EdgeTensor", "CEdgeKernels", "EdgeTestSupport"]),

        // Tests of the wire, the job file and the client.
        .testTarget(name: "EdgeWireTests", dependencies: ["EdgeWire"]),
        .testTarget(name: "EdgeYAMLTests", dependencies: ["EdgeWire", "EdgeYAML"]),
        .testTarget(name: "EdgetuneTests", dependencies: ["EdgeWire", "edgetune"]),
        .testTarget(
            name: "EdgeJobsTests",
            dependencies: ["EdgeJobs", "EdgeWire", "EdgeTestSupport", .product(name: "GRDB", package: "GRDB.swift")]),
        // The executable is a dependency so that it is built; the tests start it as a process.
        .testTarget(
            name: "DaemonTests",
            dependencies: [
                "CEdgeSandbox", "EdgeFormats", "EdgeJobs", "EdgeWire", "EdgeTestSupport", "edgetune", "edgetuned",
                // To write stores of earlier releases.
                .product(name: "GRDB", package: "GRDB.swift"),
                // The hub that PullTests pull from.
                .product(name: "NIOCore", package: "swift-nio"),
                .product(name: "NIOHTTP1", package: "swift-nio"),
                .product(name: "NIOPosix", package: "swift-nio"),
                .product(name: "NIOSSL", package: "swift-nio-ssl"),
            ]),
        .testTarget(name: "TidyTests", dependencies: ["EdgeTestSupport"]),
        // The fuzz targets' functions over the committed corpora; libFuzzer is Tests/Fuzz/run's.
        .testTarget(
            name: "FuzzTests",
            dependencies: [
                "EdgeTrain", "EdgeModel", "EdgeFormats", "EdgeTensor", "CEdgeKernels", "EdgeJobs", "EdgeWire", "EdgeYAML", "edgetuned",
                "EdgeTestSupport", .product(name: "GRDB", package: "GRDB.swift"),
            ],
            path: "Tests/Fuzz",
            exclude: ["README.md", "run", "make_seeds.py", "corpus", "dictionaries", "LibFuzzer"]),
    ],
    swiftLanguageModes: [.v6]
)
