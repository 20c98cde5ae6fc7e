// What four machines show below /sys of their heat and their power: the names of their kernels' files, and values as they are
// when the machine has nothing to do. Raspberry Pi 5: bcm2712.dtsi and bcm2712-rpi-5-b.dts of Raspberry Pi's kernel. RK3588:
// rk3588-base.dtsi of the mainline. Intel: drivers/thermal/intel/x86_pkg_temp_thermal.c, whose two trips are 0 until they are
// set; `sensors` of an N100 and of a laptop. power_supply: Documentation/ABI/testing/sysfs-class-power.
import Foundation

package enum CapturedBoard: String, CaseIterable, Sendable {
    case raspberryPi5, n100, laptop, rk3588

    /// A zone of its processor, and the °C from which runs are to pause by default.
    package var hottest: (index: Int, name: String, pausesAt: Int, throttling: String) {
        switch self {
        case .raspberryPi5: (0, "cpu-thermal", 75, "Raspberry Pi's firmware throttles at 80 °C")
        case .n100: (1, "x86_pkg_temp", 100, "the processor throttles at 105 °C")
        case .laptop: (2, "x86_pkg_temp", 95, "the processor throttles at 100 °C")
        case .rk3588: (1, "bigcore0-thermal", 80, "its passive trip is at 85 °C")
        }
    }
}

extension CapturedHost {
    package init(_ board: CapturedBoard, in directory: String) throws {
        try self.init(in: directory)
        switch board {
        case .raspberryPi5:
            try write("raspberrypi,5-model-b\0brcm,bcm2712\0", to: "/sys/firmware/devicetree/base/compatible")
            try zone(
                0, "cpu-thermal", 52_350,
                [("critical", 110_000), ("active", 50_000), ("active", 60_000), ("active", 67_500), ("active", 75_000)])
        case .n100:
            try zone(0, "acpitz", 27_800, [("critical", 110_000)])
            try zone(1, "x86_pkg_temp", 44_000, [("passive", 0), ("passive", 0)])
            try hwmon(0, "acpitz", ["temp1_input": "27800", "temp1_crit": "110000"])
            try hwmon(1, "nvme", ["temp1_input": "38850", "temp1_crit": "84850"])
            try hwmon(
                2, "coretemp",
                ["temp1_label": "Package id 0", "temp1_input": "44000", "temp1_max": "105000", "temp1_crit": "105000"])
        case .laptop:
            try zone(0, "acpitz", 47_000, [("critical", 128_000), ("passive", -274_000)])
            try zone(1, "INT3400 Thermal", 20_000, [])
            try zone(2, "x86_pkg_temp", 51_000, [("passive", 0), ("passive", 0)])
            try zone(3, "iwlwifi_1", 42_000, [("passive", -32_768_000)])
            try hwmon(
                0, "coretemp",
                ["temp1_label": "Package id 0", "temp1_input": "51000", "temp1_max": "100000", "temp1_crit": "100000"])
            try supply("ADP1", ["type": "Mains", "online": "1"])
            try supply("BAT0", ["type": "Battery", "present": "1", "status": "Charging", "capacity": "71"])
            try supply("ucsi-source-psy-USBC000:001", ["type": "USB", "online": "0", "scope": "System"])
            // A mouse.
            try supply("hidpp_battery_0", ["type": "Battery", "present": "1", "scope": "Device", "status": "Discharging", "capacity": "15"])
        case .rk3588:
            try write("radxa,rock-5b\0rockchip,rk3588\0", to: "/sys/firmware/devicetree/base/compatible")
            for (index, name) in ["package", "bigcore0", "bigcore2", "littlecore", "center", "gpu", "npu"].enumerated() {
                let isCPU = name.contains("core")
                try zone(
                    index, name + "-thermal", 44_300 + 100 * index,
                    isCPU ? [("passive", 85_000), ("critical", 115_000)] : [("critical", 115_000)])
            }
        }
    }

    /// - Parameter trips: millidegrees.
    package func zone(_ index: Int, _ type: String, _ temperature: Int, _ trips: [(String, Int)]) throws {
        let zone = "/sys/class/thermal/thermal_zone\(index)"
        try write(type + "\n", to: zone + "/type")
        try write("enabled\n", to: zone + "/mode")
        try write("step_wise\n", to: zone + "/policy")
        for (number, trip) in trips.enumerated() {
            try write("\(trip.0)\n", to: "\(zone)/trip_point_\(number)_type")
            try write("\(trip.1)\n", to: "\(zone)/trip_point_\(number)_temp")
            try write("2000\n", to: "\(zone)/trip_point_\(number)_hyst")
        }
        try setTemperature(temperature, zone: index)
    }

    /// In millidegrees.
    package func setTemperature(_ temperature: Int, zone: Int) throws {
        try write("\(temperature)\n", to: "/sys/class/thermal/thermal_zone\(zone)/temp")
    }

    package func supply(_ name: String, _ values: [String: String]) throws {
        for (file, value) in values { try write(value + "\n", to: "/sys/class/power_supply/\(name)/\(file)") }
    }

    private func hwmon(_ index: Int, _ name: String, _ values: [String: String]) throws {
        try write(name + "\n", to: "/sys/class/hwmon/hwmon\(index)/name")
        for (file, value) in values { try write(value + "\n", to: "/sys/class/hwmon/hwmon\(index)/\(file)") }
    }

    /// As a laptop shows it.
    package func unplug(percent: Int) throws {
        try supply("ADP1", ["online": "0"])
        try supply("BAT0", ["status": "Discharging", "capacity": "\(percent)"])
    }

    package func plugIn(percent: Int) throws {
        try supply("ADP1", ["online": "1"])
        try supply("BAT0", ["status": "Charging", "capacity": "\(percent)"])
    }
}
