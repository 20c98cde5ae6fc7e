// The committed corpora through the fuzzers' own entry functions, without libFuzzer, so that neither rots. What was found once is
// among them.
import EdgeTestSupport
import Foundation
import Testing

struct ReplayTests {
    /// Of a target, by name.
    static func corpus(_ target: FuzzTarget) throws -> [(name: String, bytes: [UInt8])] {
        let folder = TestModel.repositoryRoot + "/Tests/Fuzz/corpus/" + target.name
        return try FileManager.default.contentsOfDirectory(atPath: folder).sorted().map {
            ($0, Array(try Data(contentsOf: URL(filePath: "\(folder)/\($0)"))))
        }
    }

    /// Nil: all but `http-head`.
    private static let chosen = ProcessInfo.processInfo.environment["EDGETUNE_REPLAY"]

    // In a process of its own: the daemon that it holds needs the threads on which other tests wait.
    @Test("so does http-head's") func connectionsHold() async throws {
        guard Self.chosen == nil else { return }
        let own = try FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")
        let (code, text) = try await onOwnThread {
            try Command.run(
                "/usr/bin/env",
                ["EDGETUNE_REPLAY=http-head", own, "--testing-library", "swift-testing", "--filter", "ReplayTests/corporaHold"])
        }
        #expect(code == 0 && text.contains("1 test"), "\(text.suffix(3000))")
    }

    // One after another: targets share their scratch files.
    @Test("every committed input leaves the claims whole, and every target is shown one that is read to its end")
    func corporaHold() async throws {
        let broken = try await onOwnThread { try Self.claimsBrokenByCorpora() }
        #expect(broken.isEmpty, "\(broken.joined(separator: "\n"))")
    }

    private static func claimsBrokenByCorpora() throws -> [String] {
        defer { ScratchDirectory.remove() }
        var claims: [String] = []
        let targets = FuzzTarget.data + FuzzTarget.control
        for target in targets where Self.chosen.map({ $0 == target.name }) ?? (target.name != "http-head") {
            let corpus = try Self.corpus(target)
            var accepted: [String] = []
            for (name, bytes) in corpus {
                let broken = bytes.withUnsafeBytes(target.broken)
                if let broken { claims.append("\(target.name)/\(name): \(broken)") }
                if bytes.count > target.longestInput { claims.append("\(target.name)/\(name) is never tried whole") }
                if broken == nil, bytes.withUnsafeBytes({ (try? target.read($0)) != nil }) { accepted.append(name) }
                // What a cut-off file or one foreign byte leads to is cheap to try.
                for end in Set([bytes.count / 2, max(0, bytes.count - 1)]) {
                    guard let broken = bytes[..<end].withUnsafeBytes(target.broken) else { continue }
                    claims.append("\(target.name)/\(name) cut off at \(end): \(broken)")
                }
            }
            if accepted.isEmpty { claims.append("no seed of \(target.name) is taken: they have rotted") }
        }
        return claims
    }

    @Test("a broken claim is seen")
    func canaryIsSeen() throws {
        let canary = try #require(FuzzTarget.canaries.first { $0.name == "canary-error" })
        #expect(Array("no".utf8).withUnsafeBytes(canary.broken) != nil)
        #expect(Array("yes".utf8).withUnsafeBytes(canary.broken) == nil)
    }
}
