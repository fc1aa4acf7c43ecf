// SPDX-License-Identifier: GPL-2.0-only
/*
 * Remote processors whose cores are processes.
 *
 * A core opens /dev/rproc_simN and talks in native-endian 32-bit words:
 *
 *   read   the notify id of a virtqueue that was kicked, once however often that was since, or an event:
 *          enum rproc_sim_event
 *   write  the notify id of a virtqueue that it kicks, 0xffffffTT: report a crash of type TT (enum rproc_crash_type), or
 *          STOPPED or DETACHED: it has seen that, and lets go of all memory
 *   mmap   physical memory, from offset = physical address: a core is a bus master
 *   fsync  wait until the kernel has dealt with the crashes reported so far
 *
 * Attribute `memory` of platform device rproc-sim.N: "PA DA SIZE" of the memory that firmware is loaded to.
 */
#include <linux/completion.h>
#include <linux/dma-mapping.h>
#include <linux/elf.h>
#include <linux/interrupt.h>
#include <linux/kfifo.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/poll.h>
#include <linux/remoteproc.h>
#include <linux/sizes.h>
#include <linux/uaccess.h>
#include <linux/workqueue.h>

#define RPROC_SIM_MAX		4
#define RPROC_SIM_DA		0x10000000
#define RPROC_SIM_SIZE		SZ_1M
#define RPROC_SIM_VRING		0x80000 /* offset of the first of two vrings, with param vrings */
#define RPROC_SIM_VRING_SIZE	SZ_16K
#define RPROC_SIM_CRASH		0xffffff00
#define RPROC_SIM_QUEUES	64 /* notify ids */
#define RPROC_SIM_PATIENCE	(5 * HZ)

enum rproc_sim_event {
	RPROC_SIM_STOPPED	= 0xfffffff0,
	RPROC_SIM_STARTED	= 0xfffffff1,
	RPROC_SIM_ATTACHED	= 0xfffffff2,
	RPROC_SIM_DETACHED	= 0xfffffff3,
};

struct rproc_sim {
	struct rproc *rproc;
	struct miscdevice misc;
	char misc_name[16];
	void *va;
	dma_addr_t dma;
	DECLARE_KFIFO(events, u32, 256);
	DECLARE_BITMAP(kicked, RPROC_SIM_QUEUES); /* in events already */
	spinlock_t lock; /* writers of events */
	struct mutex read_lock; /* readers of events */
	struct completion acknowledged;
	wait_queue_head_t wait;
};

/* drivers/remoteproc/remoteproc_internal.h */
irqreturn_t rproc_vq_interrupt(struct rproc *rproc, int notifyid);

static unsigned int count = 1;
module_param(count, uint, 0444);
MODULE_PARM_DESC(count, "Number of remote processors");

static bool auto_boot;
module_param(auto_boot, bool, 0444);
MODULE_PARM_DESC(auto_boot, "Let the kernel boot them, or attach to them, by itself");

static bool attach;
module_param(attach, bool, 0444);
MODULE_PARM_DESC(attach, "Begin in state detached: somebody else has started them");

static bool attach_on_recovery;
module_param(attach_on_recovery, bool, 0444);
MODULE_PARM_DESC(attach_on_recovery, "They recover by themselves, and are attached to");

static bool no_stop;
module_param(no_stop, bool, 0444);
MODULE_PARM_DESC(no_stop, "Cannot be stopped");

static bool no_detach;
module_param(no_detach, bool, 0444);
MODULE_PARM_DESC(no_detach, "Cannot be detached from");

static bool vrings;
module_param(vrings, bool, 0444);
MODULE_PARM_DESC(vrings, "Have carveouts for the vrings of vdev 0");

static bool acknowledge;
module_param(acknowledge, bool, 0444);
MODULE_PARM_DESC(acknowledge, "A core acknowledges stop and detach: a process cannot be halted from here");

static int start_error;
module_param(start_error, int, 0644);
MODULE_PARM_DESC(start_error, "What the start operation returns");

static int stop_error;
module_param(stop_error, int, 0644);
MODULE_PARM_DESC(stop_error, "What the stop operation returns");

static int attach_error;
module_param(attach_error, int, 0644);
MODULE_PARM_DESC(attach_error, "What the attach operation returns");

static int detach_error;
module_param(detach_error, int, 0644);
MODULE_PARM_DESC(detach_error, "What the detach operation returns");

static unsigned int dump_size = 0x100;
module_param(dump_size, uint, 0644);
MODULE_PARM_DESC(dump_size, "Bytes of memory in a core dump");

static unsigned int table_offset;
module_param(table_offset, uint, 0644);
MODULE_PARM_DESC(table_offset, "Where in memory the resource table is that a core has before an attach");

static unsigned int table_size;
module_param(table_size, uint, 0644);
MODULE_PARM_DESC(table_size, "Size of that table, 0 for none");

static struct platform_device *rproc_sim_devices[RPROC_SIM_MAX];

static void rproc_sim_tell(struct rproc *rproc, u32 event)
{
	struct rproc_sim *sim = rproc->priv;

	if (!kfifo_in_spinlocked(&sim->events, &event, 1, &sim->lock))
		dev_warn_ratelimited(&rproc->dev, "sim: nobody reads, event 0x%x lost\n", event);
	wake_up_interruptible(&sim->wait);
}

static int rproc_sim_op(struct rproc *rproc, const char *name, int error, enum rproc_sim_event event)
{
	dev_info(&rproc->dev, "sim: %s: %d\n", name, error);
	if (!error)
		rproc_sim_tell(rproc, event);
	return error;
}

static int rproc_sim_halt(struct rproc *rproc, const char *name, int error, enum rproc_sim_event event)
{
	struct rproc_sim *sim = rproc->priv;
	int ret;

	reinit_completion(&sim->acknowledged);
	ret = rproc_sim_op(rproc, name, error, event);
	if (!ret && acknowledge && !wait_for_completion_timeout(&sim->acknowledged, RPROC_SIM_PATIENCE))
		ret = -ETIMEDOUT;
	return ret;
}

static int rproc_sim_start(struct rproc *rproc)
{
	return rproc_sim_op(rproc, "start", start_error, RPROC_SIM_STARTED);
}

static int rproc_sim_stop(struct rproc *rproc)
{
	return rproc_sim_halt(rproc, "stop", stop_error, RPROC_SIM_STOPPED);
}

static int rproc_sim_attach(struct rproc *rproc)
{
	return rproc_sim_op(rproc, "attach", attach_error, RPROC_SIM_ATTACHED);
}

static int rproc_sim_detach(struct rproc *rproc)
{
	return rproc_sim_halt(rproc, "detach", detach_error, RPROC_SIM_DETACHED);
}

static int rproc_sim_prepare(struct rproc *rproc)
{
	struct rproc_sim *sim = rproc->priv;
	int i, ret;

	if (dump_size) {
		ret = rproc_coredump_add_segment(rproc, RPROC_SIM_DA, dump_size);
		if (ret)
			return ret;
	}

	for (i = 0; vrings && i < 2; i++) {
		u32 offset = RPROC_SIM_VRING + i * RPROC_SIM_VRING_SIZE;
		struct rproc_mem_entry *mem;

		mem = rproc_mem_entry_init(&rproc->dev, sim->va + offset, sim->dma + offset, RPROC_SIM_VRING_SIZE,
					   RPROC_SIM_DA + offset, NULL, NULL, "vdev0vring%d", i);
		if (!mem)
			return -ENOMEM;
		rproc_add_carveout(rproc, mem);
	}
	return 0;
}

static void rproc_sim_kick(struct rproc *rproc, int notifyid)
{
	struct rproc_sim *sim = rproc->priv;

	if (notifyid >= RPROC_SIM_QUEUES || !test_and_set_bit(notifyid, sim->kicked))
		rproc_sim_tell(rproc, notifyid);
}

static void *rproc_sim_da_to_va(struct rproc *rproc, u64 da, size_t len, bool *is_iomem)
{
	struct rproc_sim *sim = rproc->priv;
	u64 offset = da - RPROC_SIM_DA;

	if (da < RPROC_SIM_DA || offset > RPROC_SIM_SIZE || len > RPROC_SIM_SIZE - offset)
		return NULL;
	return sim->va + offset;
}

static struct resource_table *rproc_sim_get_table(struct rproc *rproc, size_t *size)
{
	struct rproc_sim *sim = rproc->priv;

	if (!table_size)
		return NULL;
	if (table_offset > RPROC_SIM_SIZE || table_size > RPROC_SIM_SIZE - table_offset)
		return ERR_PTR(-EINVAL);
	*size = table_size;
	return sim->va + table_offset;
}

/* Of vendor entries the first type is handled, the third one an error, all others are ignored. */
static int rproc_sim_handle_rsc(struct rproc *rproc, u32 type, void *rsc, int offset, int avail)
{
	dev_info(&rproc->dev, "sim: vendor entry of type %u at %d, %d bytes\n", type, offset, avail);
	switch (type) {
	case RSC_VENDOR_START:
		return RSC_HANDLED;
	case RSC_VENDOR_START + 2:
		return -EPERM;
	default:
		return RSC_IGNORED;
	}
}

static const struct rproc_ops rproc_sim_ops = {
	.prepare = rproc_sim_prepare,
	.start = rproc_sim_start,
	.stop = rproc_sim_stop,
	.attach = rproc_sim_attach,
	.detach = rproc_sim_detach,
	.kick = rproc_sim_kick,
	.da_to_va = rproc_sim_da_to_va,
	.get_loaded_rsc_table = rproc_sim_get_table,
	.handle_rsc = rproc_sim_handle_rsc,
};

static struct rproc_sim *rproc_sim_of(struct file *file)
{
	return container_of(file->private_data, struct rproc_sim, misc);
}

static ssize_t rproc_sim_read(struct file *file, char __user *buf, size_t len, loff_t *pos)
{
	struct rproc_sim *sim = rproc_sim_of(file);
	size_t copied = 0;
	u32 event;
	int ret;

	if (len < sizeof(event))
		return -EINVAL;

	do {
		if (kfifo_is_empty(&sim->events)) {
			if (file->f_flags & O_NONBLOCK)
				return -EAGAIN;
			ret = wait_event_interruptible(sim->wait, !kfifo_is_empty(&sim->events));
			if (ret)
				return ret;
		}
		if (mutex_lock_interruptible(&sim->read_lock))
			return -ERESTARTSYS;
		while (len - copied >= sizeof(event) && kfifo_get(&sim->events, &event)) {
			if (event < RPROC_SIM_QUEUES)
				clear_bit(event, sim->kicked);
			ret = put_user(event, (u32 __user *)(buf + copied));
			if (ret)
				break;
			copied += sizeof(event);
		}
		mutex_unlock(&sim->read_lock);
	} while (!ret && !copied);

	return copied ? copied : ret;
}

static ssize_t rproc_sim_write(struct file *file, const char __user *buf, size_t len, loff_t *pos)
{
	struct rproc_sim *sim = rproc_sim_of(file);
	u32 value;

	if (len != sizeof(value))
		return -EINVAL;
	if (copy_from_user(&value, buf, sizeof(value)))
		return -EFAULT;

	if (value == RPROC_SIM_STOPPED || value == RPROC_SIM_DETACHED)
		complete(&sim->acknowledged);
	else if (value >= RPROC_SIM_CRASH)
		rproc_report_crash(sim->rproc, value - RPROC_SIM_CRASH);
	else
		rproc_vq_interrupt(sim->rproc, value); /* IRQ_NONE: a kick in vain, which is no error */
	return len;
}

static __poll_t rproc_sim_poll(struct file *file, poll_table *wait)
{
	struct rproc_sim *sim = rproc_sim_of(file);
	__poll_t mask = EPOLLOUT | EPOLLWRNORM;

	poll_wait(file, &sim->wait, wait);
	if (!kfifo_is_empty(&sim->events))
		mask |= EPOLLIN | EPOLLRDNORM;
	return mask;
}

static int rproc_sim_mmap(struct file *file, struct vm_area_struct *vma)
{
	return remap_pfn_range(vma, vma->vm_start, vma->vm_pgoff, vma->vm_end - vma->vm_start, vma->vm_page_prot);
}

static int rproc_sim_fsync(struct file *file, loff_t start, loff_t end, int datasync)
{
	flush_work(&rproc_sim_of(file)->rproc->crash_handler);
	return 0;
}

/* An open file pins the module and with it the devices: they go at its exit only. */
static const struct file_operations rproc_sim_fops = {
	.owner = THIS_MODULE,
	.read = rproc_sim_read,
	.write = rproc_sim_write,
	.poll = rproc_sim_poll,
	.mmap = rproc_sim_mmap,
	.fsync = rproc_sim_fsync,
	.llseek = noop_llseek,
};

static ssize_t memory_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct rproc_sim *sim = dev_get_drvdata(dev);

	return sysfs_emit(buf, "0x%llx 0x%x 0x%x\n", (u64)sim->dma, RPROC_SIM_DA, RPROC_SIM_SIZE);
}
static DEVICE_ATTR_RO(memory);

static struct attribute *rproc_sim_attrs[] = {
	&dev_attr_memory.attr,
	NULL
};
ATTRIBUTE_GROUPS(rproc_sim);

static void rproc_sim_deregister(void *misc)
{
	misc_deregister(misc);
}

static int rproc_sim_probe(struct platform_device *pdev)
{
	struct device *dev = &pdev->dev;
	struct rproc_sim *sim;
	struct rproc *rproc;
	char name[16];
	int ret;

	ret = dma_set_mask_and_coherent(dev, DMA_BIT_MASK(32));
	if (ret)
		return ret;

	snprintf(name, sizeof(name), "sim%d", pdev->id);
	rproc = devm_rproc_alloc(dev, name, &rproc_sim_ops, "sim.elf", sizeof(*sim));
	if (!rproc)
		return -ENOMEM;

	rproc->auto_boot = auto_boot;
	if (attach)
		rproc->state = RPROC_DETACHED;
	if (attach_on_recovery)
		set_bit(RPROC_FEAT_ATTACH_ON_RECOVERY, rproc->features);
	if (no_stop)
		rproc->ops->stop = NULL;
	if (no_detach)
		rproc->ops->detach = NULL;
	rproc_coredump_set_elf_info(rproc, ELFCLASS32, EM_ARM);

	sim = rproc->priv;
	sim->rproc = rproc;
	INIT_KFIFO(sim->events);
	spin_lock_init(&sim->lock);
	mutex_init(&sim->read_lock);
	init_completion(&sim->acknowledged);
	init_waitqueue_head(&sim->wait);
	platform_set_drvdata(pdev, sim);

	sim->va = dmam_alloc_coherent(dev, RPROC_SIM_SIZE, &sim->dma, GFP_KERNEL);
	if (!sim->va)
		return -ENOMEM;

	snprintf(sim->misc_name, sizeof(sim->misc_name), "rproc_sim%d", pdev->id);
	sim->misc.minor = MISC_DYNAMIC_MINOR;
	sim->misc.name = sim->misc_name;
	sim->misc.fops = &rproc_sim_fops;
	ret = misc_register(&sim->misc);
	if (ret)
		return ret;
	ret = devm_add_action_or_reset(dev, rproc_sim_deregister, &sim->misc);
	if (ret)
		return ret;

	return devm_rproc_add(dev, rproc);
}

static struct platform_driver rproc_sim_driver = {
	.probe = rproc_sim_probe,
	.driver = {
		.name = "rproc-sim",
		.dev_groups = rproc_sim_groups,
		.suppress_bind_attrs = true,
	},
};

static void rproc_sim_remove_devices(void)
{
	int i;

	for (i = RPROC_SIM_MAX - 1; i >= 0; i--)
		platform_device_unregister(rproc_sim_devices[i]);
}

static int __init rproc_sim_init(void)
{
	struct platform_device *pdev;
	int i, ret;

	if (count > RPROC_SIM_MAX)
		return -EINVAL;

	ret = platform_driver_register(&rproc_sim_driver);
	if (ret)
		return ret;

	for (i = 0; i < count; i++) {
		pdev = platform_device_register_simple("rproc-sim", i, NULL, 0);
		if (IS_ERR(pdev)) {
			rproc_sim_remove_devices();
			platform_driver_unregister(&rproc_sim_driver);
			return PTR_ERR(pdev);
		}
		rproc_sim_devices[i] = pdev;
	}
	return 0;
}
module_init(rproc_sim_init);

static void __exit rproc_sim_exit(void)
{
	rproc_sim_remove_devices();
	platform_driver_unregister(&rproc_sim_driver);
}
module_exit(rproc_sim_exit);

MODULE_DESCRIPTION("Remote processors whose cores are processes");
MODULE_LICENSE("GPL");
