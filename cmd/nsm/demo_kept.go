// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/sdk/nserr"
)

// Every demo is a lab whose name begins so.
const demoPrefix = "nsm-demo-"

// keptFile is in the folder of a demo that was left running: a keptDemo.
const keptFile = "kept"

// keptDemo is what a later command has to know of a demo that was left running.
type keptDemo struct {
	Rights string              `json:"rights"`         // how it came to be allowed to run
	User   int                 `json:"user,omitempty"` // who has used sudo
	Nodes  map[string][]string `json:"nodes"`          // environment by node, KEY=value

	dir   string
	owner int // of the folder, as this process sees it
	since time.Time
}

func (k *keptDemo) name() string { return filepath.Base(k.dir) } // of its lab

// short is its name as --name takes it.
func (k *keptDemo) short() string { return strings.TrimPrefix(k.name(), demoPrefix) }

// mark writes down that the lab is left running.
func (k *keptDemo) mark() error {
	data, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(k.dir, keptFile), data, 0o644)
}

// findKept returns the demos that were left running, whosever they are.
func findKept() (list []*keptDemo) {
	marks, _ := filepath.Glob(filepath.Join(os.TempDir(), demoPrefix+"*", keptFile))
	for _, path := range marks {
		k := &keptDemo{dir: filepath.Dir(path)}
		var folder, mark unix.Stat_t
		if unix.Lstat(k.dir, &folder) != nil || folder.Mode&unix.S_IFMT != unix.S_IFDIR || unix.Lstat(path, &mark) != nil {
			continue // it has just gone
		}
		k.owner, k.since = int(folder.Uid), time.Unix(mark.Mtim.Unix())
		if k.owner == os.Geteuid() || k.owner == 0 { // else nobody would believe it
			data, err := os.ReadFile(path)
			if err != nil || json.Unmarshal(data, k) != nil {
				continue // it has just gone, or is of another build
			}
		}
		list = append(list, k)
	}
	return list
}

// door is the way to a demo that was left running.
type door int

const (
	noDoor     door = iota // it is somebody else's
	openDoor               // this process may do everything there
	sudoDoor               // this program may, by sudo
	userNSDoor             // this program may, in the demo's user and mount namespace
)

// door returns the way to the demo for a process of user uid. inside is how that
// process got its rights, if a process of a demo gave them to it.
func (k *keptDemo) door(uid int, inside string, sudoUser int) door {
	switch {
	case inside == bySudo && k.User != sudoUser:
		return noDoor // the one who is behind it did not start this one
	case k.owner != uid && k.owner == 0 && k.Rights == bySudo && k.User == uid:
		return sudoDoor
	case k.owner != uid:
		return noDoor
	case inside == "" && k.Rights == userNamespace:
		return userNSDoor
	}
	return openDoor
}

func (k *keptDemo) doorForMe() door { return k.door(os.Geteuid(), os.Getenv(insideVar), sudoUser()) }

// pick returns the demo of that name, or the only one, of those that this user has
// left running; nil = there is none. foreigners are the names of other users' then.
func pick(name demoName) (_ *keptDemo, foreigners []string, err error) {
	var mine []*keptDemo
	for _, k := range findKept() {
		switch {
		case name != "" && string(name) != k.short():
		case k.doorForMe() == noDoor:
			foreigners = append(foreigners, k.name())
		default:
			mine = append(mine, k)
		}
	}
	switch len(mine) {
	case 0:
		return nil, foreigners, nil
	case 1:
		return mine[0], nil, nil
	}
	slices.SortFunc(mine, func(x, y *keptDemo) int { return x.since.Compare(y.since) })
	var list []string
	for _, k := range mine {
		list = append(list, fmt.Sprintf("%s (since %s)", k.short(), k.since.Local().Format(time.DateTime)))
	}
	return nil, nil, nserr.BadFlag.Errorf("%d demos of yours are kept: %s", len(mine), strings.Join(list, ", ")).
		WithFix("say which, such as --name %s", mine[len(mine)-1].short())
}

// stopDemo removes a demo that this user has left running.
func (a *app) stopDemo(name demoName) error {
	k, foreigners, err := pick(name)
	switch {
	case err != nil:
		return err
	case len(foreigners) > 0:
		return nserr.NotAllowed.Errorf("%s: somebody else has started that", strings.Join(foreigners, ", ")).WithFix("stop it as that user")
	case k == nil && name != "":
		return noDemo(name)
	case k == nil:
		fmt.Fprintln(a.out, "no demo is running")
		return nil
	}
	switch k.doorForMe() {
	case sudoDoor:
		return a.againBySudo()
	case userNSDoor:
		if _, err := k.process(); err == nil {
			return a.againInUserNamespaceOf(k)
		}
	}
	if err := lab.Remove(k.name(), k.dir); err != nil {
		return err
	}
	fmt.Fprintln(a.out, "stopped", k.name())
	return nil
}

// noDemo is the error that this user has left none running, or none of that name.
func noDemo(name demoName) error {
	if name != "" {
		return nserr.UnknownNode.Errorf("no demo %s of yours is running", name).WithFix("start it with 'nsm demo --keep --name %s'", name)
	}
	return nserr.UnknownNode.Errorf("no demo of yours is running").WithFix("start one with 'nsm demo --keep'")
}

// runOnDemo runs a command, or a shell, at a place of a demo that this user has left
// running.
func (a *app) runOnDemo(ctx context.Context, name demoName, place string, command []string) error {
	k, _, err := pick(name)
	switch {
	case err != nil:
		return err
	case k == nil:
		return noDemo(name)
	}
	switch k.doorForMe() {
	case sudoDoor:
		return a.againBySudo()
	case userNSDoor:
		return a.againInUserNamespaceOf(k)
	}
	return k.run(ctx, a, place, command)
}

// run runs a command at a node ("a") or a workload ("a-web") of the demo.
func (k *keptDemo) run(ctx context.Context, a *app, place string, command []string) error {
	node, _, _ := strings.Cut(place, "-")
	env := k.Nodes[node]
	if places := k.places(); !slices.Contains(places, place) {
		return nserr.BadFlag.Errorf("--on=%q: %s has %s", place, k.name(), strings.Join(places, ", ")).WithFix("name one of these")
	}
	w, err := openWorkload(workloadConfig{NetNS: k.name() + "-" + place}, nil)
	if err != nil {
		return err
	}
	defer w.close()
	if dir := os.Getenv(workDirVar); dir != "" {
		_ = os.Chdir(dir) // it need not be there in this mount namespace
	}
	// What is left running here is the demo's as much as its own daemons are.
	env = append(env, lab.Mark(k.name()), "PATH="+k.programs()+":"+os.Getenv("PATH"))
	for _, v := range env {
		key, value, _ := strings.Cut(v, "=")
		_ = os.Setenv(key, value) // for the command, there is nothing else to do
	}
	for _, v := range []string{insideVar, nameVar, workDirVar} {
		_ = os.Unsetenv(v)
	}
	if len(command) == 0 {
		command = []string{cmp.Or(os.Getenv("SHELL"), "/bin/sh")}
		if isTerminal(a.in) {
			fmt.Fprintf(a.err, "nsm: a shell at %s of %s; 'exit' leaves it\n", place, k.name())
		}
	}
	return w.run(ctx, a, command)
}

// places are the network namespaces of the demo: nodes, and workloads of nodes.
func (k *keptDemo) places() (names []string) {
	paths, _ := filepath.Glob(filepath.Join(netns.RunDir, k.name()+"-*"))
	for _, path := range paths {
		place := strings.TrimPrefix(filepath.Base(path), k.name()+"-")
		if node, _, _ := strings.Cut(place, "-"); k.Nodes[node] != nil {
			names = append(names, place)
		}
	}
	return names
}

// programs is a folder in which this program is called nsm.
func (k *keptDemo) programs() string { return filepath.Join(k.dir, "bin") }

// againBySudo runs this command line again as root.
func (a *app) againBySudo() error {
	c, err := sudo(isTerminal(a.in))
	if err != nil {
		return err
	}
	code, err := again(c)
	if err != nil {
		return err
	}
	return exitStatusOf(code)
}

// Whoever enters a demo's namespaces, where other demos are out of reach and the
// working directory is the root directory at first, is told which demo it is and
// where it was.
const (
	nameVar    = "NSM_DEMO_NAME" // of --name
	workDirVar = "NSM_DEMO_WORKDIR"
)

// againInUserNamespaceOf runs this command line again in the namespaces of a
// demo's processes. That takes a program of a single thread to do it: nsenter(1).
func (a *app) againInUserNamespaceOf(k *keptDemo) error {
	pid, err := k.process()
	if err != nil {
		return err
	}
	enter := enterUserNamespace(pid)
	c := exec.Command(enter[0], append(append(enter[1:], selfPath()), os.Args[1:]...)...)
	dir, _ := os.Getwd()
	c.Env = append(os.Environ(), insideVar+"="+userNamespace, nameVar+"="+k.name(), workDirVar+"="+dir)
	code, err := again(c)
	if err != nil {
		return err
	}
	return exitStatusOf(code)
}

// enterUserNamespace is a command line that another one follows: it runs with all
// rights in the user namespace of a process, and sees its mounts.
func enterUserNamespace(pid int) []string {
	return []string{"nsenter", "-t", strconv.Itoa(pid), "-U", "-m", "--preserve-credentials"}
}

// process returns the id of one of the demo's processes.
func (k *keptDemo) process() (pid int, err error) {
	for _, line := range lab.Find(k.name(), k.dir).Processes {
		number, _, _ := strings.Cut(line, " ")
		if pid, err = strconv.Atoi(number); err == nil {
			return pid, nil
		}
	}
	return 0, nserr.UnknownNode.Errorf("nothing of %s runs any more", k.name()).WithFix("remove it with 'nsm demo --stop'")
}
