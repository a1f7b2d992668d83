// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"errors"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/openvwire/nsm/forwarder/wireguard/mux"
)

func newTestTUN(t *testing.T) *tunnel {
	t.Helper()
	table := underlay(t)
	ns := workload(t, table)
	var dev *tunnel
	if err := ns.Do(func() (err error) {
		dev, err = createTUN("nsm-1", 1400, new(mux.Scratch))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dev.Close() })
	return dev
}

// Throughput depends on segments of up to 64 KiB passing in one system call.
func TestOffloadsAreOn(t *testing.T) {
	dev := newTestTUN(t)
	if got := dev.BatchSize(); got != conn.IdealBatchSize {
		t.Errorf("batch size = %d, want %d", got, conn.IdealBatchSize)
	}
	for name, command := range map[string]uint32{
		"transmit checksum (ETHTOOL_GTXCSUM)": 0x16,
		"TCP segmentation (ETHTOOL_GTSO)":     0x1e,
	} {
		if !ethtool(t, dev, command) {
			t.Errorf("%s is off", name)
		}
	}
}

// ethtool asks for one offload (linux/ethtool.h: struct ethtool_value).
func ethtool(t *testing.T, dev *tunnel, command uint32) bool {
	t.Helper()
	value := struct{ cmd, data uint32 }{cmd: command}
	var request struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(request.name[:], dev.name)
	request.data = unsafe.Pointer(&value)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(dev.ctl), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		t.Fatalf("ethtool %#x: %v", command, errno)
	}
	return value.data != 0
}

// WireGuard learns of a new MTU, although it runs in another namespace.
func TestMTUIsFollowed(t *testing.T) {
	dev := newTestTUN(t)
	dev.refresh()
	select {
	case e := <-dev.Events():
		t.Fatalf("event %v without a change", e)
	default:
	}
	ifr, err := unix.NewIfreq(dev.name)
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint32(1300)
	if err := unix.IoctlIfreq(dev.ctl, unix.SIOCSIFMTU, ifr); err != nil {
		t.Fatal(err)
	}
	dev.refresh()
	dev.refresh()
	if e := <-dev.Events(); e != tun.EventMTUUpdate {
		t.Errorf("event %v, want an MTU update", e)
	}
	if mtu, err := dev.MTU(); err != nil || mtu != 1300 {
		t.Errorf("MTU = %d, %v", mtu, err)
	}
}

func TestClosedTUN(t *testing.T) {
	dev := newTestTUN(t)
	for range 2 {
		if err := dev.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Fatal(err)
		}
	}
	if _, err := dev.MTU(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("MTU of a closed device: %v", err)
	}
	dev.refresh()
	if _, open := <-dev.Events(); open {
		t.Error("events go on after Close")
	}
}
