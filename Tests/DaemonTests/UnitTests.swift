// The unit files, as systemd's own tools judge them.
import EdgeTestSupport
import Foundation
import Testing

private let systemdAnalyze = "/usr/bin/systemd-analyze"

@Suite(.enabled(if: FileManager.default.isExecutableFile(atPath: systemdAnalyze))) struct UnitTests {
    @Test func theServiceIsExposedToLessThanOne() throws {
        // The threshold is in tenths.
        let (code, text) = try Command.run(systemdAnalyze, [
            "security", "--offline=true", "--threshold=10", TestModel.repositoryRoot + "/systemd/edgetuned.service",
        ])
        #expect(code == 0, "\(text)")
    }

    @Test func bothUnitsAreClean() throws {
        let root = try TemporaryDirectory()
        let units = root.path + "/etc/systemd/system"
        for directory in [units, root.path + "/usr/bin", root.path + "/bin"] {
            try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
        }
        // The targets that units depend on by default.
        try FileManager.default.createDirectory(
            atPath: root.path + "/usr/lib/systemd", withIntermediateDirectories: true)
        try FileManager.default.copyItem(
            atPath: "/usr/lib/systemd/system", toPath: root.path + "/usr/lib/systemd/system")
        for program in ["/usr/bin/edgetuned", "/bin/kill"] {
            try FileManager.default.copyItem(atPath: "/bin/true", toPath: root.path + program)
        }
        for name in ["edgetuned.service", "edgetuned.socket"] {
            try FileManager.default.copyItem(
                atPath: TestModel.repositoryRoot + "/systemd/" + name, toPath: units + "/" + name)
        }
        let (code, text) = try Command.run(systemdAnalyze, [
            "verify", "--root=" + root.path, "--man=no", "edgetuned.service", "edgetuned.socket",
        ])
        #expect(code == 0, "\(text)")
        #expect(!text.contains("edgetuned"), "\(text)")
    }
}
