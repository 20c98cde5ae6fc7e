// The nth file operation of the real daemon and its workers fails, for every n: with EIO, ENOSPC, EDQUOT, EMFILE or EINTR, or as
// a write that takes half. A client that tries again loses nothing by it, no job is done twice, and adapters keep their bytes.
//
//   EDGETUNE_FAULTS=all|FIRST-LAST    which n (default: a few)
//   EDGETUNE_FAULT_ERRORS=EIO,short   and EDGETUNE_FAULT_SCENES=life,others,migration,recovery narrow it down
//   EDGETUNE_PART, EDGETUNE_SECONDS   of Walk.swift
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

@Suite(.serialized) struct FileFaultTests {
    private static let errors: [(name: String, action: FaultyFiles.Action)] = [
        ("EIO", .fail(EIO)), ("ENOSPC", .fail(ENOSPC)), ("EDQUOT", .fail(EDQUOT)), ("EMFILE", .fail(EMFILE)), ("EINTR", .fail(EINTR)),
        ("short", .shortWrite),
    ]

    static func chosen(_ variable: String) -> Set<String>? {
        ProcessInfo.processInfo.environment[variable].map { Set($0.split(separator: ",").map(String.init)) }
    }

    @Test func noFailedFileOperationLosesAnything() throws {
        let directory = try TemporaryDirectory()
        let stage = try FaultStage(in: directory.path)
        let walk = Walk("EDGETUNE_FAULTS", sample: [])
        let (errors, scenes) = (Self.chosen("EDGETUNE_FAULT_ERRORS"), Self.chosen("EDGETUNE_FAULT_SCENES"))
        // A sample takes each error once, at places that are far apart.
        let sampled: [(FaultStage.Scene, [Int])] = [(.life, [9, 60, 110, 160, 210]), (.others, [60]), (.migration, [20]), (.recovery, [15])]
        for scene in FaultStage.Scene.allCases where scenes?.contains(scene.rawValue) != false {
            if walk.numbers.isEmpty {
                let numbers = sampled.first { $0.0 == scene }?.1 ?? []
                for (index, number) in numbers.enumerated() {
                    let error = Self.errors[index % Self.errors.count]
                    _ = try Self.fail(number, error, scene, stage)
                }
                continue
            }
            for error in Self.errors where errors?.contains(error.name) != false {
                try walk.each("\(scene) \(error.name)") { try Self.fail($0, error, scene, stage) }
            }
        }
        #expect(!stage.points.isEmpty)
        try stage.finish("failed file operations")
    }

    /// True: it came to that operation.
    private static func fail(
        _ number: Int, _ error: (name: String, action: FaultyFiles.Action), _ scene: FaultStage.Scene, _ stage: FaultStage
    ) throws -> Bool {
        try stage.play(scene, what: "\(scene) \(error.name)", number, arm: { stage.files.arm(error.action, at: number) })
    }
}
