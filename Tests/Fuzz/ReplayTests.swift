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

    // One after another: targets share their scratch files.
    @Test("every committed input leaves the claims whole, and every target is shown one that is read to its end")
    func corporaHold() throws {
        defer { ScratchDirectory.remove() }
        for target in FuzzTarget.data + FuzzTarget.control {
            let corpus = try Self.corpus(target)
            var accepted: [String] = []
            for (name, bytes) in corpus {
                let broken = bytes.withUnsafeBytes(target.broken)
                #expect(broken == nil, "\(target.name)/\(name)")
                #expect(bytes.count <= target.longestInput, "\(target.name)/\(name) is never tried whole")
                if broken == nil, bytes.withUnsafeBytes({ (try? target.read($0)) != nil }) { accepted.append(name) }
                // What a cut-off file or one foreign byte leads to is cheap to try.
                for end in Set([bytes.count / 2, max(0, bytes.count - 1)]) {
                    #expect(bytes[..<end].withUnsafeBytes(target.broken) == nil, "\(target.name)/\(name) cut off at \(end)")
                }
            }
            #expect(!accepted.isEmpty, "no seed of \(target.name) is taken: they have rotted")
        }
    }

    @Test("a broken claim is seen")
    func canaryIsSeen() throws {
        let canary = try #require(FuzzTarget.canaries.first { $0.name == "canary-error" })
        #expect(Array("no".utf8).withUnsafeBytes(canary.broken) != nil)
        #expect(Array("yes".utf8).withUnsafeBytes(canary.broken) == nil)
    }
}
