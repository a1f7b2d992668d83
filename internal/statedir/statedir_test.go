// SPDX-License-Identifier: Apache-2.0

package statedir_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/openvwire/nsm/internal/statedir"
	"github.com/openvwire/nsm/sdk/nserr"
)

func open(t *testing.T, path string) *statedir.Dir {
	t.Helper()
	dir, err := statedir.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	return dir
}

func TestWriteRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "state")
	dir := open(t, path)
	if _, err := dir.Read("key"); !errors.Is(err, fs.ErrNotExist) || !errors.Is(err, nserr.StateDir) {
		t.Errorf("Read of a missing file: %v", err)
	}
	for _, want := range []string{"one", "", "three"} {
		if err := dir.Write("key", []byte(want)); err != nil {
			t.Fatal(err)
		}
		if got, err := dir.Read("key"); err != nil || string(got) != want {
			t.Errorf("Read = %q, %v, want %q", got, err, want)
		}
	}
	for name, want := range map[string]fs.FileMode{path: 0o700, dir.Path("key"): 0o600, dir.Path("lock"): 0o600} {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want mode %v", name, info.Mode(), err, want)
		}
	}
	entries, _ := os.ReadDir(path)
	if len(entries) != 2 {
		t.Errorf("directory holds %v, want key and lock alone", entries)
	}
}

func TestOneOwner(t *testing.T) {
	path := t.TempDir()
	os.Chmod(path, 0o700)
	first := open(t, path)
	if _, err := statedir.Open(path); !errors.Is(err, nserr.StateDir) {
		t.Errorf("second Open: %v", err)
	}
	first.Close()
	open(t, path)
}

func TestRefused(t *testing.T) {
	tests := map[string]func(t *testing.T, path string) error{
		"directory is a file": func(t *testing.T, path string) error {
			os.WriteFile(path, nil, 0o600)
			_, err := statedir.Open(path)
			return err
		},
		"parent is a file": func(t *testing.T, path string) error {
			os.WriteFile(path, nil, 0o600)
			_, err := statedir.Open(filepath.Join(path, "state"))
			return err
		},
		"directory writable by others": func(t *testing.T, path string) error {
			os.Mkdir(path, 0o700)
			os.Chmod(path, 0o777)
			_, err := statedir.Open(path)
			return err
		},
		"file readable by others": func(t *testing.T, path string) error {
			dir := open(t, path)
			os.WriteFile(dir.Path("key"), nil, 0o600)
			os.Chmod(dir.Path("key"), 0o640)
			_, err := dir.Read("key")
			return err
		},
		"file is a directory": func(t *testing.T, path string) error {
			dir := open(t, path)
			os.Mkdir(dir.Path("key"), 0o700)
			_, err := dir.Read("key")
			return err
		},
		"file too large": func(t *testing.T, path string) error {
			dir := open(t, path)
			os.WriteFile(dir.Path("key"), nil, 0o600)
			os.Truncate(dir.Path("key"), 1<<30)
			_, err := dir.Read("key")
			return err
		},
		"directory gone": func(t *testing.T, path string) error {
			dir := open(t, path)
			os.RemoveAll(path)
			return dir.Write("key", nil)
		},
	}
	for name, f := range tests {
		t.Run(name, func(t *testing.T) {
			if err := f(t, filepath.Join(t.TempDir(), "state")); !errors.Is(err, nserr.StateDir) {
				t.Errorf("got %v, want %v", err, nserr.StateDir)
			}
		})
	}
}

// A full disk must leave the previous contents and no half-written file.
func TestDiskFull(t *testing.T) {
	path := t.TempDir()
	if err := syscall.Mount("tmpfs", path, "tmpfs", 0, "size=64k,mode=0700"); err != nil {
		t.Skipf("needs root to mount a small file system: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(path, syscall.MNT_DETACH) })

	dir := open(t, path)
	if err := dir.Write("key", []byte("precious")); err != nil {
		t.Fatal(err)
	}
	if err := dir.Write("key", bytes.Repeat([]byte{1}, 1<<20)); !errors.Is(err, nserr.StateDir) || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Write on a full disk: %v", err)
	}
	if got, err := dir.Read("key"); err != nil || string(got) != "precious" {
		t.Errorf("Read after a failed write = %q, %v", got, err)
	}
	if entries, _ := os.ReadDir(path); len(entries) != 2 {
		t.Errorf("directory holds %v, want key and lock alone", entries)
	}
}
