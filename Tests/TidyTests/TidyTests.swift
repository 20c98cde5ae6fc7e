// The rules of the README's map, held by reading the source as text.
import EdgeTestSupport
import Foundation
import Testing

struct TidyTests {
    /// What each target may import beside itself. Nothing points up, and third parties stay where they belong.
    static let imports: [String: Set<String>] = [
        "EdgeTensor": ["CEdgeKernels", "Glibc", "Synchronization"],
        "EdgeFormats": ["CLZ4", "Glibc", "Musl", "FoundationEssentials"],
        "EdgeModel": ["EdgeFormats", "EdgeTensor", "Glibc"],
        "EdgeTrain": ["CEdgeKernels", "EdgeFormats", "EdgeModel", "EdgeTensor", "Glibc"],
        "EdgeWire": ["Foundation"],
        "EdgeYAML": ["EdgeWire", "Foundation", "Yams"],
        "EdgeJobs": ["EdgeWire", "Foundation", "Glibc", "GRDB", "Subprocess", "Crypto", "Synchronization", "System", "SystemPackage"],
    ]

    static func sources(of target: String) throws -> [(path: String, lines: [Substring])] {
        let root = URL(filePath: TestModel.repositoryRoot + "/Sources/" + target)
        let files = try #require(FileManager.default.enumerator(at: root, includingPropertiesForKeys: nil))
        return try files.compactMap { $0 as? URL }.filter { $0.pathExtension == "swift" }.map {
            ($0.path, try String(contentsOf: $0, encoding: .utf8).split(separator: "\n", omittingEmptySubsequences: false))
        }
    }

    @Test("every target imports only what the map allows")
    func importsPointDown() throws {
        for (target, allowed) in Self.imports {
            let files = try Self.sources(of: target)
            #expect(!files.isEmpty, "\(target) has no source")
            for (path, lines) in files {
                for line in lines {
                    let words = line.split(separator: " ")
                    guard let keyword = words.firstIndex(of: "import"), keyword <= 1, words.count > keyword + 1,
                        !line.hasPrefix(" "), !line.hasPrefix("/")
                    else { continue }
                    let module = String(words.last!.split(separator: ".").first!)
                    #expect(allowed.contains(module), "\(path) imports \(module)")
                }
            }
        }
    }

    @Test("the data plane neither prints, nor reads the clock or the environment")
    func dataPlaneIsPure() throws {
        let forbidden = ["print(", "ContinuousClock", "Date()", "getenv(", "ProcessInfo", "clock_gettime", "exit("]
        for target in ["EdgeTensor", "EdgeFormats", "EdgeModel", "EdgeTrain"] {
            for (path, lines) in try Self.sources(of: target) {
                for line in lines where !line.drop(while: { $0 == " " }).hasPrefix("//") {
                    for word in forbidden {
                        #expect(!line.contains(word), "\(path): \(line)")
                    }
                }
            }
        }
    }

    @Test("every source file opens by saying what lives in it")
    func filesOpenWithAComment() throws {
        for target in Array(Self.imports.keys) + ["edgetuned", "edgetune", "edgebench"] {
            for (path, lines) in try Self.sources(of: target) {
                #expect(lines.first?.hasPrefix("//") == true, "\(path)")
            }
        }
    }

    @Test("nothing but a pull opens a connection to another machine")
    func onlyAPullUsesTheNetwork() throws {
        let words = ["AsyncHTTPClient", "NIOSSL", "URLSession", "FoundationNetworking", "AF_INET", "connect(host:", "getaddrinfo"]
        let targets = Array(Self.imports.keys) + ["edgetuned", "edgetune", "edgebench"]
        let users = try targets.flatMap { try Self.sources(of: $0) }.filter { file in
            file.lines.contains { line in words.contains { line.contains($0) } }
        }
        #expect(users.map { URL(filePath: $0.path).lastPathComponent } == ["HubConnection.swift"])
    }
}
